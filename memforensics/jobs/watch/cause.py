"""The search for the cause of growth that a watch sees: growth alone does not prove a leak.

`memforensics diagnose` runs for some seconds in a process of its own, because compiling and tracing take more memory
than a watch may use. The watch adds its evidence to its own. Most growth has no known cause, so the search is repeated
ever less often.
"""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from memforensics.case.model import (
    AllocationSite,
    Case,
    Diagnosis,
    Hook,
    HookAudit,
    Loss,
    Module,
    ProbeStatus,
    Target,
    TraceSummary,
)
from memforensics.case.store import KINDS, CaseFile
from memforensics.errors import MemforensicsError
from memforensics.jobs.observe.recorder import Record
from memforensics.units import MIB, NS_PER_S, duration_text

SHORTEST_S, LONGEST_S = 12.0, 60.0
TRACED_BYTES = 6 * MIB  # of growth: a search is long enough to see so much
FIRST_PAUSE_S, LONGEST_PAUSE_S = 600.0, 3600.0  # between two searches; it doubles after each
CLOSE_S = 10.0
_TRACE = "mmap-trace"  # the probe that records which code maps memory

EVIDENCE = (Module, AllocationSite, TraceSummary, Hook, HookAudit, ProbeStatus, Loss)


class CauseSearch:
    """Call `follow` with each conclusion; `added_to` adds what was found to a case. `close` ends it."""

    def __init__(self, pid: int, *, children: bool = True) -> None:
        self.pid, self.children = pid, children
        self.state: str | None = None  # a sentence for the screen
        self._found: tuple[Record, ...] = ()
        self._targets: dict[int, Target] = {}  # of the search, with versions and live environment
        self._running: subprocess.Popen[bytes] | None = None
        self._folder = contextlib.ExitStack()
        self._next_ns, self._pause_s = 0, FIRST_PAUSE_S
        self._outcome = ""

    def follow(self, diagnosis: Diagnosis, now_ns: int) -> bool:
        """Starts a search if one is due; takes the evidence of one that ended. True: the state changed, and the next
        conclusion may differ."""
        if self._running is not None:
            return self._running.poll() is not None and self._take_evidence(now_ns)
        if diagnosis.verdict != "growing":
            self.state = None
            return False
        if now_ns < self._next_ns:
            self.state = f"{self._outcome}, next search in {duration_text(round((self._next_ns - now_ns) / NS_PER_S))}"
            return False
        self._begin(_search_seconds(diagnosis))
        return True

    def added_to(self, case: Case) -> Case:
        """The case of the watch with the evidence of the search."""
        if not self._found:
            return case
        fields: dict[str, Any] = {}
        for record in self._found:
            name = KINDS[type(record)][1]
            fields[name] = (*fields.get(name, ()), record)
        targets = tuple(self._with_details(target) for target in case.targets)
        probes, losses = (*case.probes, *fields.pop("probes", ())), (*case.losses, *fields.pop("losses", ()))
        return replace(case, **fields, targets=targets, probes=probes, losses=losses)

    def close(self) -> tuple[Record, ...]:
        """Ends a search that is running; returns what the last one found."""
        if self._running is not None:
            self._running.terminate()  # like Ctrl-C: it detaches from the target
            try:
                self._running.wait(timeout=CLOSE_S)
            except subprocess.TimeoutExpired:
                self._running.kill()
                self._running.wait()
            self._running = None
        self._folder.close()
        return self._found

    def _begin(self, seconds: float) -> None:
        self._case = (
            Path(self._folder.enter_context(tempfile.TemporaryDirectory(prefix="memforensics-"))) / "cause.case"
        )
        words = ["diagnose", str(self.pid), "--duration", f"{seconds:.0f}s", "--record", str(self._case)]
        words += ["--format", "json"] if self.children else ["--format", "json", "--no-children"]
        self.state = f"searching for the cause ({seconds:.0f} s)"
        self._running = subprocess.Popen(
            [sys.executable, "-m", "memforensics", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _take_evidence(self, now_ns: int) -> bool:
        self._running = None
        self._next_ns, self._pause_s = now_ns + int(self._pause_s * NS_PER_S), min(2 * self._pause_s, LONGEST_PAUSE_S)
        self.state = None
        self._outcome = "no known cause found"
        try:
            with CaseFile.open(self._case) as file:
                found = file.load(kinds=(Target, *EVIDENCE))
        except MemforensicsError as error:
            self._outcome = f"the search for the cause failed: {error}"
            return True
        finally:
            self._folder.close()
        self._found = tuple(_evidence(found))
        failed = next((probe for probe in found.probes if probe.name == _TRACE and probe.status != "ok"), None)
        if failed is not None and not found.sites:
            self._outcome = f"the cause cannot be found: {failed.why}"
        self._targets = {target.pid: target for target in found.targets}
        return True

    def _with_details(self, own: Target) -> Target:
        other = self._targets.get(own.pid)
        if other is None or other.start_ticks != own.start_ticks:
            return own
        return replace(other, began_ns=own.began_ns, exited_ns=own.exited_ns, left_how=own.left_how)


def _search_seconds(diagnosis: Diagnosis) -> float:
    """How long a search must run to trace TRACED_BYTES at this rate."""
    rate = diagnosis.growth.rate if diagnosis.growth else None
    if rate is None or rate.estimate <= 0:
        return LONGEST_S
    return min(max(TRACED_BYTES / rate.estimate * 60.0, SHORTEST_S), LONGEST_S)


def _evidence(found: Case) -> Iterable[Record]:
    for kind in EVIDENCE:
        yield from getattr(found, KINDS[kind][1])
