"""What a hooked function means for a leak investigation. Pure."""

from collections import defaultdict
from collections.abc import Iterable

from memforensics.case.model import Hook, HookAudit
from memforensics.text import basename


def hook_meanings(hooks: Iterable[Hook], audits: Iterable[HookAudit]) -> dict[str, str]:
    """Hooked function -> one sentence."""
    slots = sum(audit.got_slots for audit in audits)
    meanings: dict[str, str] = {}
    by_function: dict[str, list[Hook]] = defaultdict(list)
    for hook in hooks:
        by_function[hook.function].append(hook)
    for function, same in by_function.items():
        first = same[0]
        text = (
            f"each call of {function} in this process goes to {basename(first.owner_path) or 'memory of no file'} first"
        )
        if first.mechanism == "inline":
            text += f": the code of {basename(first.patched_in) or 'its library'} is patched in memory"
            if not any(hook.objects for hook in same if hook.mechanism == "got"):
                text += f"; a check of the GOT alone finds nothing ({slots} slots compared)"
        elif first.mechanism == "got":
            text += f": GOT slots of {len(first.objects)} objects were changed"
        else:
            text += ": it comes first in the link order (LD_PRELOAD)"
        meanings[function] = text
    return meanings
