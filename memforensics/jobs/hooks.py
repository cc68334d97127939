"""hooks: who intercepts mmap, munmap, brk, malloc and their kin in one process."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memforensics.analysis.hook_meanings import hook_meanings
from memforensics.case.model import Hook, HookAudit, Loss, Module, ProbeStatus, Target
from memforensics.errors import MemforensicsError, TargetError
from memforensics.jobs.observe.recorder import Record, Recorder, new_meta, probe_failed
from memforensics.probes.hooks import audit_hooks
from memforensics.report.json.shapes import hook_json, losses_json
from memforensics.report.sentences import hook_sentence
from memforensics.symbols.address_space import AddressSpace
from memforensics.target import open_process
from memforensics.target.describe import describe
from memforensics.text import basename


@dataclass(frozen=True, slots=True)
class HooksView:
    """What `memforensics hooks` shows."""

    target: Target
    hooks: tuple[Hook, ...]
    audit: HookAudit
    modules: tuple[Module, ...]
    losses: tuple[Loss, ...]
    meanings: dict[str, str]

    def json(self) -> dict[str, Any]:
        """{pid, hooks: [...], audit: {...}, modules: [...], losses: [...]}."""
        return {
            "pid": self.target.pid,
            "hooks": [hook_json(hook, self.meanings.get(hook.function)) for hook in self.hooks],
            "audit": {
                "functions": list(self.audit.functions),
                "objects_read": self.audit.objects_read,
                "objects_unread": self.audit.objects_unread,
                "got_slots": self.audit.got_slots,
                "entries_compared": self.audit.entries_compared,
            },
            "modules": [
                {"path": m.path, "version": m.version, "version_how": m.version_how, "build_id": m.build_id}
                for m in self.modules
            ],
            "losses": losses_json(self.losses),
        }

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(functions, mechanism, who gets the call, how), hooks of one owner and mechanism together."""
        groups: dict[tuple[str, str | None], list[Hook]] = {}
        for hook in self.hooks:
            groups.setdefault((hook.mechanism, hook.owner_path), []).append(hook)
        rows = []
        for (mechanism, path), hooks in groups.items():
            owner = basename(path) if path else "memory of no file"
            version = f" {hooks[0].owner_version}" if hooks[0].owner_version else ""
            rows.append((", ".join(h.function for h in hooks), mechanism, owner + version, hook_sentence(hooks)))
        return rows

    def summary(self) -> str:
        """One sentence: what was looked at, and what came of it."""
        looked = (
            f"{self.audit.got_slots} GOT slots of {self.audit.objects_read} objects compared with their bindings, "
            f"{self.audit.entries_compared} function entries with their files"
        )
        if not self.hooks:
            return f"No watched function is intercepted: {looked}."
        if all(hook.mechanism == "inline" for hook in self.hooks):
            return f"{looked}. The code is patched, the GOT is clean: a check of GOT slots alone finds nothing."
        return f"{looked}."


def hooks(pid: int, *, record: Path | None = None) -> HooksView:
    """Audits a live process, passively. NoSuchProcess, NotATarget, TargetGone, PermissionNeeded, CaseError."""
    with contextlib.closing(open_process(pid)) as process:
        target = describe(process)
        found, audit, modules, losses = audit_hooks(process, AddressSpace(process))
    if record is not None:
        with Recorder(new_meta("hooks", pid), record) as recorder:
            recorder.put([target, *found, audit, *modules, *losses, ProbeStatus(name="hooks", pid=pid, status="ok")])
    return HooksView(target, tuple(found), audit, tuple(modules), tuple(losses), hook_meanings(found, [audit]))


def audit_records(pid: int) -> list[Record]:
    """The audit of one process as records; none if it has left."""
    try:
        with contextlib.closing(open_process(pid)) as process:
            found, audit, modules, losses = audit_hooks(process, AddressSpace(process))
    except TargetError:
        return []
    except MemforensicsError as error:
        return [probe_failed("hooks", error, pid=pid)]
    return [*found, audit, *modules, *losses, ProbeStatus(name="hooks", pid=pid, status="ok")]
