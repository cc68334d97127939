"""The audit of one process: all finders, and the modules that play a part in what they found."""

import time

from memforensics.case.model import Hook, HookAudit, Loss, Module
from memforensics.probes.hooks.entries import find_inline
from memforensics.probes.hooks.slots import find_got, find_preload
from memforensics.probes.hooks.state import Audit
from memforensics.probes.hooks.watched_functions import WATCHED
from memforensics.symbols.address_space import AddressSpace
from memforensics.target import Process

FINDERS = (find_inline, find_got, find_preload)


def audit_hooks(process: Process, space: AddressSpace) -> tuple[list[Hook], HookAudit, list[Module], list[Loss]]:
    """The hooks of one process, what the audit covered, the modules involved with their versions, and what was not
    read. TargetGone, PermissionNeeded."""
    state = Audit(process, space)
    hooks = [hook for find in FINDERS for hook in find(state)]
    unread, foreign = state.unread, len(state.scope.objects) - len(state.objects)
    if unread:
        why = next((why for module in unread if (why := space.why_no_elf(module))), "")
        state.lose(f"mapped files that could not be read ({why})", len(unread), "run as root")
    if foreign:
        state.lose("objects for another machine than x86-64: not read here", foreign)
    summary = HookAudit(
        pid=process.pid,
        t_ns=time.monotonic_ns(),
        functions=WATCHED,
        objects_read=len(state.scope.objects),
        objects_unread=len(unread),
        got_slots=state.got_slots,
        entries_compared=state.entries,
    )
    return hooks, summary, _modules(state), state.losses


def _modules(state: Audit) -> list[Module]:
    """The modules that own or suffer a hook, and those with a version of their own in one folder with them: parts of
    the same package."""
    folders = {module.path.rpartition("/")[0] for module in state.involved.values()}
    out = []
    for one in state.scope.objects:
        module = one.module
        is_involved = module.start in state.involved
        if not is_involved and module.path.rpartition("/")[0] not in folders:
            continue
        version = state.versions.of(module)
        if version is not None or is_involved:
            out.append(
                Module(
                    pid=state.process.pid,
                    path=module.path,
                    start=module.start,
                    build_id=state.build_id(module),
                    version=version[0] if version else None,
                    version_how=version[1] if version else None,
                )
            )
    return out
