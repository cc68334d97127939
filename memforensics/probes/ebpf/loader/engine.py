"""eBPF programs through the distribution's bcc: compiled without kernel headers, attached to tracepoints, detached.

Everything lives behind our file descriptors: when this process ends, by SIGKILL too, the kernel detaches and frees all
of it, and the target notices nothing.
"""

import contextlib
import ctypes
import importlib.util
import os
import platform
import re
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memforensics.errors import MemforensicsError, PermissionNeeded, ProbeFailed, ToolMissing
from memforensics.probes.ebpf.loader import objects
from memforensics.probes.ebpf.loader.compile_cache import compiled, linked
from memforensics.probes.ebpf.loader.objects import Table
from memforensics.probes.ebpf.loader.ring_buffer import Ring, wait_for_any
from memforensics.probes.ebpf.loader.syscalls import MACHINES

SOURCES = Path(__file__).parent.parent / "bpf"
DIST_PACKAGES = "/usr/lib/python3/dist-packages"
TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
MOUNT_TRACEFS = "mount -t tracefs nodev /sys/kernel/tracing"

_INIT_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h


@dataclass(frozen=True, slots=True)
class RunStats:
    """What the kernel counted for our programs: all runs, for any process, and their time. `missed`: runs that were
    skipped because a BPF program was running on that CPU already. `traced_runs`: runs for traced processes;
    `traced_ns`: their time from the check that the process is traced."""

    runs: int
    run_ns: int
    missed: int
    traced_runs: int = 0
    traced_ns: int = 0


def import_bcc() -> Any:
    """The distribution's bcc, also in a virtual environment or another Python version (it is pure ctypes). ToolMissing
    when it is not installed."""
    if DIST_PACKAGES not in sys.path:
        sys.path.append(DIST_PACKAGES)  # at the end: nothing else there may shadow our environment
    fix = "apt-get install python3-bpfcc   (never `pip install bcc`: that is an unrelated program)"
    if importlib.util.find_spec("bcc") is None:
        raise ToolMissing("bcc is not installed", why=f"no package bcc on sys.path or in {DIST_PACKAGES}", enable=fix)
    try:
        with warnings.catch_warnings():
            # bcc 0.26's table.py has "\*" in a string; Python 3.12 and later warn, once
            warnings.filterwarnings("ignore", r"invalid escape sequence|.*is an invalid escape sequence", SyntaxWarning)
            warnings.filterwarnings("ignore", r"invalid escape sequence", DeprecationWarning)
            import bcc
    except (ImportError, OSError, SyntaxError) as error:
        raise ToolMissing("bcc cannot be loaded", why=str(error), enable=fix) from error
    if not hasattr(bcc, "BPF"):
        raise ToolMissing("the package bcc found here is another program", why=str(bcc.__file__), enable=fix)
    return bcc


def tracefs(places: Sequence[Path] = TRACEFS, mountinfo: Path = Path("/proc/self/mountinfo")) -> Path:
    """Where tracefs is mounted. ToolMissing: it is not mounted. PermissionNeeded: it cannot be read."""
    closed: Path | None = None
    for place in places:
        try:
            os.listdir(place / "events")
            return place
        except PermissionError:
            closed = closed or place
        except OSError:
            continue
    if closed is not None and " - tracefs " in mountinfo.read_text(errors="surrogateescape"):
        raise _closed(closed)
    raise ToolMissing(
        "tracefs is not mounted",
        why="system call tracepoints are attached through it",
        enable=MOUNT_TRACEFS if os.geteuid() == 0 else f"sudo {MOUNT_TRACEFS}",
    )


def _closed(path: Path) -> PermissionNeeded:
    return PermissionNeeded(
        f"not allowed to read {path}",
        privilege="CAP_DAC_READ_SEARCH",
        why="tracefs is mounted; its owner is root, and it needs root or CAP_DAC_READ_SEARCH",
    )


def event_field_offset(event: str, field: str) -> int:
    """The byte offset of a field in a tracepoint's record ("sched/sched_process_fork"); it varies by kernel version."""
    path = tracefs() / "events" / event / "format"
    try:
        text = path.read_text()
    except PermissionError as error:
        raise _closed(path) from error
    except OSError as error:
        raise ProbeFailed(f"this kernel has no tracepoint {event}", why=str(error)) from error
    found = re.search(rf"field:[^;]*\b{field}(?:\[[^\]]*\])?;\s*offset:(\d+);", text)
    if found is None:
        raise ProbeFailed(f"tracepoint {event} has no field {field} on this kernel")
    return int(found[1])


def pid_namespace() -> tuple[int, int]:
    """Device and inode of our PID namespace; (0, 0) in the host's own, where the kernel's numbers are ours."""
    about = os.stat("/proc/self/ns/pid")
    return (0, 0) if about.st_ino == _INIT_PID_NAMESPACE else (about.st_dev, about.st_ino)


def hash_flags() -> int:
    """BPF_F_NO_PREALLOC where it is safe in tracing programs (bpf_mem_alloc, Linux 6.1), so that a large table costs
    memory only as it fills."""
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    return 1 if release and (int(release[1]), int(release[2])) >= (6, 1) else 0


class _RunCounter:
    """The kernel's counters of runs. They are on for the first seconds, and then at intervals."""

    FIRST_S, ON_S, OFF_S = 2.0, 0.1, 0.9

    def __init__(self, count: Callable[[], RunStats]) -> None:
        self._count = count
        self._descriptor = objects.enable_stats()
        self._able = self._descriptor is not None
        self._since = time.monotonic()
        self._first = True
        self._estimated = (0.0, 0.0)  # runs and ns while the counters were off
        self._rate = (0.0, 0.0)  # of the last time that they were on
        self._before = RunStats(0, 0, 0)  # at its beginning

    def read(self) -> RunStats | None:
        if not self._able:
            return None
        now = self._count()
        idle = 0.0 if self._descriptor is not None else time.monotonic() - self._since
        runs, run_ns = (so_far + idle * rate for so_far, rate in zip(self._estimated, self._rate, strict=True))
        return RunStats(now.runs + int(runs), now.run_ns + int(run_ns), now.missed)

    def pace(self) -> None:
        if not self._able:
            return
        took = time.monotonic() - self._since
        if self._descriptor is None:
            if took < self.OFF_S:
                return
            self._resume(took)
        else:
            if took < (self.FIRST_S if self._first else self.ON_S):
                return
            now = self._count()
            self._rate = (now.runs - self._before.runs) / took, (now.run_ns - self._before.run_ns) / took
            self._first = False
            self.close()
        self._since = time.monotonic()

    def anew(self) -> None:
        if not self._able:
            return
        if self._descriptor is None:
            self._resume(time.monotonic() - self._since)
        self._before = self._count()
        self._since, self._first = time.monotonic(), True

    def _resume(self, idle: float) -> None:
        self._estimated = (self._estimated[0] + idle * self._rate[0], self._estimated[1] + idle * self._rate[1])
        self._before = self._count()
        self._descriptor = objects.enable_stats()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Engine:
    """A loaded set of programs. `attach` arms them; `close` (always, twice too) takes all of it away.

    The constructor raises ToolMissing, PermissionNeeded or ProbeFailed; nothing is left loaded then.
    """

    def __init__(self, source: str, defines: Mapping[str, int]) -> None:
        tracefs()
        if os.geteuid() != 0 and not _has_bpf_capability():
            raise _permission_error()
        self._bcc = import_bcc()
        flags = [f"-D{name}={value}" for name, value in defines.items()]
        flags += ["-I/usr/include", f"-I/usr/include/{platform.machine()}-linux-gnu", "-w", "-g0"]
        with (
            _environment("BCC_KERNEL_SOURCE", str(SOURCES)),
            _environment("ARCH", _bcc_arch()),
            _captured_stderr() as said,
        ):
            try:
                self._code = compiled(self._bcc, expand_includes(source), flags)
            except Exception as error:
                raise _translated(error, said(), source) from error
        self._lib = self._bcc.libbcc.lib
        self._maps: dict[str, Table] = {}
        self._loaded: dict[str, int] = {}
        self._attached: list[int] = []
        self._rings: list[Ring] = []
        self._open = True
        objects.lift_memory_limit()
        try:
            for spec in self._code.maps:
                self._maps[spec.name] = Table(self._lib, objects.create_map(spec), spec)
        except OSError as error:
            self._close_descriptors()
            raise _translated(error, "", source) from error
        self._meter = _RunCounter(self._count_runs)

    def attach(self, programs: Mapping[str, str]) -> None:
        """Tracepoint ("syscalls:sys_exit_mmap") -> function."""
        for event, function in programs.items():
            program = self._load(function)
            category, name = event.split(":")
            with _captured_stderr() as said:
                descriptor = int(self._lib.bpf_attach_tracepoint(program, category.encode(), name.encode()))
            if descriptor < 0:
                why = OSError(ctypes.get_errno(), f"{event}: {os.strerror(ctypes.get_errno())}")
                raise _translated(why, said(), event)
            self._attached.append(descriptor)

    def tail_call(self, table: str, index: int, function: str) -> None:
        """Puts a program into a table for tail calls."""
        self._maps[table].put(struct.pack("<I", index), struct.pack("<I", self._load(function)))

    def _load(self, function: str) -> int:
        if function not in self._loaded:
            descriptors = {index: self._maps[spec.name].descriptor for index, spec in enumerate(self._code.maps)}
            try:
                code = linked(self._code.functions[function], descriptors)
                self._loaded[function] = objects.load_program(function, code)
            except OSError as error:
                raise _translated(error, "", function) from error
        return self._loaded[function]

    def table(self, name: str, key: struct.Struct, value: struct.Struct) -> Table:
        return self.raw_table(name, key.size, value.size)

    def raw_table(self, name: str, key_size: int, value_size: int) -> Table:
        table = self._maps[name]
        declared = (table.key_size, table.value_size)
        if declared != (key_size, value_size):
            raise ProbeFailed(f"BPF table {name} has sizes {declared}, not {(key_size, value_size)}")
        return table

    def per_cpu_sums(self, name: str, count: int) -> list[int]:
        """The sums over all CPUs of a per-CPU array of counters."""
        each = (self._maps[name].get(struct.pack("<I", i)) or b"" for i in range(count))
        return [sum(value for (value,) in struct.iter_unpack("<q", values)) for values in each]

    def open_ring(self, name: str, max_records: int = 512) -> None:
        """Adds a ring buffer to `events`, which reads up to so many of its records in one call."""
        self._rings.append(Ring(self._bcc, self._maps[name], max_records))

    def events(self, timeout_s: float = 0.0) -> list[bytes]:
        """The next records, oldest first; waits up to `timeout_s` when there are none. These need not be all
        (`has_read`); the rest waits in the kernel."""
        if timeout_s > 0 and not any(ring.waiting for ring in self._rings):
            wait_for_any(self._rings, timeout_s)
        return [record for ring in self._rings for record in ring.take()]

    def written_until(self) -> list[int]:
        """The write position of each ring buffer, for `has_read`."""
        return [ring.end for ring in self._rings]

    def has_read(self, until: Sequence[int]) -> bool:
        """Whether all records up to these positions were read."""
        return all(ring.position >= end for ring, end in zip(self._rings, until, strict=True))

    def waiting_bytes(self) -> int:
        """The size of the records that were not read yet."""
        return sum(ring.waiting for ring in self._rings)

    def discard_events(self) -> int:
        """Discards all records, after `detach`; returns how many."""
        return sum(ring.discard() for ring in self._rings)

    def run_stats(self) -> RunStats | None:
        """None where the kernel does not count runs (before 5.8, or not allowed)."""
        return self._meter.read()

    def pace_run_counts(self) -> None:
        """Call it a few times a second. After the first seconds runs are counted a tenth of the time and estimated for
        the rest, because counting itself is a good part of the cost of a run."""
        self._meter.pace()

    def restart_run_counts(self) -> None:
        """Runs may have another cost from now on: counts all of them for a while, as at the start."""
        self._meter.anew()

    def stop_run_counts(self) -> None:
        """Stops counting runs."""
        self._meter.close()

    def _count_runs(self) -> RunStats:
        runs = run_ns = missed = 0
        for descriptor in self._loaded.values():
            fields = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
                if ":\t" in line
            )
            runs += int(fields.get("run_cnt", 0))
            run_ns += int(fields.get("run_time_ns", 0))
            missed += int(fields.get("recursion_misses", 0))
        return RunStats(runs, run_ns, missed)

    def detach(self) -> None:
        """No program runs any more; tables can still be read."""
        attached, self._attached = self._attached, []
        for descriptor in attached:
            self._lib.bpf_close_perf_event_fd(descriptor)

    def close(self) -> None:
        if not self._open:
            return
        self.detach()
        self._meter.close()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        self._open = False
        rings, self._rings = self._rings, []
        for ring in rings:
            ring.close()
        for descriptor in (*self._loaded.values(), *(table.descriptor for table in self._maps.values())):
            os.close(descriptor)


def expand_includes(source: str) -> bytes:
    """The source with our own headers pasted in: bcc rewrites map accesses in the main file only."""

    def included(match: re.Match[str]) -> str:
        return (SOURCES / match[1]).read_text()

    return re.sub(r'^#include "([\w.]+)"$', included, (SOURCES / source).read_text(), flags=re.MULTILINE).encode()


def _bcc_arch() -> str:
    """The machine that bcc compiles for. Otherwise bcc reads ARCH, which people who build kernels set for theirs."""
    machine = MACHINES.get(platform.machine())
    return machine.bcc_arch if machine else platform.machine()


def _has_bpf_capability() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = int(re.search(r"^CapEff:\t([0-9a-f]+)", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    return bool(effective >> 39 & 1 and effective >> 38 & 1) or bool(effective >> 21 & 1)


def _permission_error(why: str = "") -> PermissionNeeded:
    return PermissionNeeded(
        "not allowed to load eBPF programs",
        privilege="CAP_BPF and CAP_PERFMON (or root)",
        why=why or "needs CAP_BPF and CAP_PERFMON (or root)",
        grant="in a container: --cap-add BPF --cap-add PERFMON; see: memforensics doctor",
    )


def _translated(error: Exception, said: str, what: str) -> MemforensicsError:
    """An exception of bcc as an error with its cause and remedy."""
    lines: Sequence[str] = [line for line in said.splitlines() if line.strip() and not line.startswith("HINT:")]
    if os.environ.get("MEMFORENSICS_DEBUG"):
        sys.stderr.write(said)
    text = f"{error} {said}"
    if "Operation not permitted" in text or "super-user" in text:
        return _permission_error("the kernel refused (EPERM): capabilities, lockdown or a seccomp filter")
    why = next((line for line in lines if "rror: " in line), lines[-1] if lines else str(error))
    return ProbeFailed(
        f"the eBPF programs cannot be loaded ({what.strip()[:60]})",
        why=why.strip()[:300],
        enable="memforensics doctor   (tries each kind of program); or: --engine bpftrace",
    )


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Any]:
    """clang and the verifier write to descriptor 2. Keeps that for the error, and does not show it."""
    keep = os.dup(2)
    spool = os.memfd_create("bcc")
    text, is_open = "", True

    def said() -> str:
        """All of it so far."""
        nonlocal text
        if not is_open:
            return text
        size = os.fstat(spool).st_size
        text = os.pread(spool, min(size, 1 << 20), max(0, size - (1 << 20))).decode(errors="replace") if size else text
        return text

    sys.stderr.flush()
    os.dup2(spool, 2)
    try:
        yield said
    finally:
        said()
        is_open = False
        os.dup2(keep, 2)
        os.close(keep)
        os.close(spool)
