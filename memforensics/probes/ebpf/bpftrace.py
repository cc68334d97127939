"""The second engine: bpftrace runs scripts/bpftrace/outstanding_mmap.bt, and its output becomes evidence.

It is for hosts that have bpftrace and no bcc, and a second opinion on figures. Its stacks are poor (frame pointers
only, no Python frames), and its results come at the end. Losses say both.
"""

import contextlib
import ctypes
import json
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import IO

from memforensics.case.model import AllocationSite, Frame, Loss, Sample, Stack, TraceSummary
from memforensics.errors import MemforensicsError, PermissionNeeded, ProbeFailed, ToolMissing
from memforensics.probes.base import Availability, Budget, Evidence
from memforensics.probes.ebpf.loader.engine import tracefs
from memforensics.target import Process

SCRIPTS = Path(str(files("memforensics"))) / "shipped" / "bpftrace"
INSTALL = "sudo apt-get install bpftrace"
MAP_KEYS = 262_144  # mappings held at a time
_START_LIMIT_S = 60.0
_STOP_LIMIT_S = 60.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# bpftrace's ustack(perf): a tab, the address in hex, symbol+offset or the address again, the mapped file in brackets.
_FRAME = re.compile(r"\s*(?P<address>[0-9a-f]+) (?P<symbol>.*?)(?:\+(?P<offset>\d+))? \((?P<module>.*)\)")
_FIRST_FRAMES = {"main", "_start", "__libc_start_call_main", "__libc_start_main", "start_thread", "clone3"}


@dataclass(slots=True)
class Printed:
    """What bpftrace printed with -f json. `maps`: by name; a scalar has the key ""."""

    maps: dict[str, dict[str, int]] = field(default_factory=dict)
    helper_errors: int = 0
    unparsed_lines: int = 0

    def number(self, name: str) -> int:
        return self.maps.get(name, {}).get("", 0)


def parse_output(text: str) -> Printed:
    """The output of a bpftrace script. Later prints of a map replace earlier ones."""
    printed = Printed()
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if record["type"] == "map":
                for name, value in record["data"].items():
                    entries = value if isinstance(value, dict) else {"": value}
                    printed.maps[name] = {key: int(number) for key, number in entries.items()}
            elif record["type"] == "helper_error":
                printed.helper_errors += 1
        except (ValueError, OverflowError, KeyError, TypeError, AttributeError):
            printed.unparsed_lines += 1
    return printed


def parse_stack(text: str) -> Stack:
    """A stack as bpftrace prints it (perf mode), leaf first. It is complete when it reached the first function of a
    thread. The frames below are of libc, often without a name (Debian's libc has no symbols of its own)."""
    frames = []
    for line in text.splitlines():
        if not line.strip():
            continue
        found = _FRAME.fullmatch(line)
        if found is None:
            frames.append(Frame(kind="native", function=None, guessed=True))
            continue
        known = found["symbol"] not in ("", "[unknown]", found["address"], f"0x{found['address']}")
        module = None if found["module"] in ("", "[unknown]") else found["module"]
        # Above the leaf only a chain of frame pointers leads to a frame.
        frames.append(
            Frame(
                kind="native",
                function=found["symbol"] if known else None,
                module=module,
                guessed=bool(frames) and not known,
            )
        )
    return Stack(frames=tuple(frames), complete=any(frame.function in _FIRST_FRAMES for frame in frames))


def sites_of(printed: Printed, pid: int, began_ns: int, ended_ns: int) -> list[AllocationSite]:
    """The sites of outstanding_mmap.bt, largest outstanding first."""
    mapped_bytes, mapped_count = printed.maps.get("@mapped_bytes", {}), printed.maps.get("@mapped_count", {})
    held_bytes, held_count = printed.maps.get("@outstanding_bytes", {}), printed.maps.get("@outstanding_count", {})
    sites = []
    for number, (text, allocated) in enumerate(sorted(mapped_bytes.items(), key=lambda i: -held_bytes.get(i[0], 0))):
        count = mapped_count.get(text, 0)
        sites.append(
            AllocationSite(
                pid=pid,
                site_id=number,
                kind="mmap",
                stack=parse_stack(text),
                outstanding_bytes=held_bytes.get(text, 0),
                outstanding_count=held_count.get(text, 0),
                allocated_bytes=allocated,
                allocated_count=count,
                freed_bytes=allocated - held_bytes.get(text, 0),
                freed_count=count - held_count.get(text, 0),
                first_ns=began_ns,
                last_ns=ended_ns,
            )
        )
    return sites


class BpftraceTrace:
    """The probe. One process; sites come from `close` only."""

    name = "mmap-trace-bpftrace"

    def __init__(self, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._running: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._output = b""
        self._target: Process | None = None
        self._before: Sample | None = None
        self._began_ns = 0
        self._last: list[Evidence] = []

    def availability(self, target: Process) -> Availability:
        try:
            _find_bpftrace()
        except (ToolMissing, PermissionNeeded) as error:
            return Availability("unavailable", str(error), error.enable)
        why = "bpftrace walks frame pointers: without them a stack is one frame, and Python's are never seen"
        return Availability("partial", why, "trace-mmap --engine bcc")

    def open(self, target: Process, budget: Budget) -> None:
        """Starts bpftrace and waits until its probes are attached. ToolMissing, PermissionNeeded, ProbeFailed."""
        program = _find_bpftrace()
        target.check()
        self._target, self._before = target, target.sample()
        # It dies when we are killed. If that fails, it ends after this time.
        seconds = str(int(budget.seconds) + 120)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the trace
        self._running = subprocess.Popen(
            [program, "-k", "-f", "json", str(SCRIPTS / "outstanding_mmap.bt"), str(target.pid), seconds],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "BPFTRACE_MAP_KEYS_MAX": str(MAP_KEYS)},
            preexec_fn=_die_with_parent,
        )
        try:
            self._wait_until_attached()
        except BaseException:
            self._stop()
            raise
        self._began_ns = self._clock()

    def poll(self) -> Iterable[Evidence]:
        """Checks that the target and bpftrace are running: TargetGone, ProbeFailed."""
        if self._target is None or self._running is None:
            return ()
        self._target.check()
        if self._running.poll() is not None:
            raise ProbeFailed("bpftrace ended early", why=self._errors_text())
        return ()

    def close(self) -> Iterable[Evidence]:
        """Sites, the summary, losses."""
        if self._running is None or self._target is None:
            return self._last
        ended_ns = self._clock()
        self._output += self._stop()
        printed = parse_output(self._output.decode(errors="replace"))
        sites = sites_of(printed, self._target.pid, self._began_ns, ended_ns)
        self._last = [*sites, self._summary(sites, printed, ended_ns), *self._losses(sites, printed)]
        return self._last

    def _summary(self, sites: list[AllocationSite], printed: Printed, ended_ns: int) -> TraceSummary:
        assert self._target is not None
        growth = None
        with contextlib.suppress(MemforensicsError):  # it exited: there is no second sample
            if self._before is not None:
                growth = self._target.sample().growth_metric - self._before.growth_metric
        return TraceSummary(
            pid=self._target.pid,
            engine="bpftrace",
            began_ns=self._began_ns,
            ended_ns=ended_ns,
            events=sum(site.allocated_count for site in sites) + printed.number("@unmapped_count"),
            outstanding_bytes=sum(site.outstanding_bytes for site in sites),
            rss_growth_bytes=growth,
        )

    def _losses(self, sites: list[AllocationSite], printed: Printed) -> Iterable[Loss]:
        cut = sum(site.allocated_count for site in sites if not site.stack.complete)
        counted = (
            ("stacks cut short: bpftrace walks frame pointers, which this code lacks", cut, "--engine bcc"),
            (
                "unmaps not recorded: of memory mapped before the trace, or from inside a mapping",
                printed.number("@not_recorded"),
                "--engine bcc",
            ),
            (
                "mappings dropped: the maps of bpftrace are full",
                printed.helper_errors,
                "--engine bcc",
            ),
            ("lines of bpftrace that could not be parsed", printed.unparsed_lines, "a bpftrace of 0.17 or newer"),
        )
        return [Loss(probe=self.name, what=what, count=n, reduce=reduce) for what, n, reduce in counted if n]

    def _wait_until_attached(self) -> None:
        assert self._running is not None
        assert self._running.stdout is not None
        deadline = time.monotonic() + _START_LIMIT_S
        while b"tracing mmap of process" not in self._output:
            left = max(0.0, deadline - time.monotonic())
            ready = select.select([self._running.stdout], [], [], left)[0]
            piece = os.read(self._running.stdout.fileno(), 65536) if ready else b""
            if not piece:
                how = "bpftrace did not start" if ready else f"bpftrace was not ready in {_START_LIMIT_S:.0f} s"
                raise ProbeFailed(how, why=self._errors_text(), enable="memforensics doctor")
            self._output += piece
        self._output = b""

    def _stop(self) -> bytes:
        """Interrupts bpftrace, which then prints its maps, and returns what it printed. Kills it when it does not
        end."""
        running, self._running = self._running, None
        if running is None:
            return b""
        with contextlib.suppress(ProcessLookupError):
            running.send_signal(signal.SIGINT)
        try:
            return running.communicate(timeout=_STOP_LIMIT_S)[0] or b""
        except subprocess.TimeoutExpired:
            running.kill()
            return running.communicate()[0] or b""
        finally:
            if self._errors is not None:
                self._errors.close()

    def _errors_text(self) -> str:
        """The last lines of bpftrace's stderr."""
        if self._errors is None or self._errors.closed:
            return ""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 2000))
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return "; ".join(line for line in lines[-4:] if "RLIMIT_MEMLOCK" not in line)


def _find_bpftrace() -> str:
    """The path of bpftrace. ToolMissing, PermissionNeeded."""
    program = shutil.which("bpftrace")
    if program is None:
        raise ToolMissing("bpftrace is not installed", enable=INSTALL)
    if os.geteuid() != 0:  # bpftrace 0.17 checks for uid 0 itself, whatever the capabilities
        raise PermissionNeeded("bpftrace runs as root only", privilege="root", grant="--engine bcc")
    tracefs()
    return program


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
