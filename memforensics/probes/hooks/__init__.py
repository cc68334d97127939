"""Who gets the call: an audit of GOT slots and of the code at the entries of watched functions. Passive.

Three finders of one shape, `(Audit) -> Iterator[Hook]`, look for the three mechanisms: `entries` compares code with its
file, `slots` compares GOT slots with what the dynamic linker would have bound, and finds what LD_PRELOAD took.
`watched_functions` lists the functions, `binding` follows the linker's search order, `patch` decodes changed code.
"""

from memforensics.probes.hooks.audit import audit_hooks
from memforensics.probes.hooks.entries import EntryState, entry_state
from memforensics.probes.hooks.watched_functions import WATCHED

__all__ = ["WATCHED", "EntryState", "audit_hooks", "entry_state"]
