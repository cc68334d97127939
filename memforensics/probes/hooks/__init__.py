"""Who gets the call: an audit of GOT slots and of code at the entries of watched functions. Passive.

`watch` lists the functions, `binding` tells where the dynamic linker would have bound a slot, `patch` decodes changed
code and follows its jumps, `audit` compares.
"""

from memforensics.probes.hooks.audit import EntryState, audit_hooks, entry_state
from memforensics.probes.hooks.watched_functions import WATCHED

__all__ = ["WATCHED", "EntryState", "audit_hooks", "entry_state"]
