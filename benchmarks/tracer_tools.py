"""The tools that are compared: how each is put on a running process or started with it, and how its output is read."""

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import tracer_stacks as stacks
from tracer_stacks import Given, Stack, judged
from tracer_workloads import HERE, Kind, Workload, start

from memforensics.probes.ebpf.faults import programs as fault_programs
from memforensics.probes.ebpf.loader import engine as ebpf
from memforensics.probes.ebpf.mmap import programs

MEMFORENSICS = Path(sys.executable).with_name("memforensics")
BEFORE = os.environ.get("MEMFORENSICS_BEFORE")  # the memforensics of another version, to compare with
ARMED_S = 20.0  # at most until a tool's events are armed
ENDING_S = 60.0  # at most until it has written what it knows
LARGEST_OUTPUT = 32 << 20  # of a text that is read
HEAPTRACK = Path("/usr/lib/heaptrack")


class CannotRun(Exception):
    """Why a tool is not measured here."""


@dataclass(slots=True)
class Session:
    """A tool at work. `text` and `folder` can be read when it has ended."""

    popen: "subprocess.Popen[bytes] | None"
    folder: Path
    life_cpu_s: float | None = None
    peak_rss: int | None = None
    killed: bool = False  # it did not end when it was asked to

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def text(self) -> str:
        with open(self.output, "rb") as file:
            return file.read(LARGEST_OUTPUT).decode(errors="replace")

    def alive(self) -> bool:
        return self.popen is None or self.popen.poll() is None

    def cpu_s(self) -> float | None:
        """So far, of the tool's process and its children. None: it has no process of its own."""
        if self.popen is None:
            return None
        with contextlib.suppress(psutil.Error, OSError):
            family = [self.popen.pid, *(p.pid for p in psutil.Process(self.popen.pid).children(recursive=True))]
            return sum(
                time.clock_gettime(~pid << 3 | 2) for pid in family
            )  # CPUCLOCK_SCHED, include/linux/posix-timers.h
        return None

    def _peak_rss(self) -> int | None:
        """Bytes, of the process that was started (children apart) since it became the tool."""
        assert self.popen is not None
        with contextlib.suppress(OSError):
            found = re.search(r"^VmHWM:\s*(\d+) kB", Path(f"/proc/{self.popen.pid}/status").read_text(), re.MULTILINE)
            return int(found[1]) << 10 if found else None
        return None

    def end(self, *, first: signal.Signals = signal.SIGINT) -> None:
        """Asks it to end as a user does, and sees that it is gone."""
        if self.popen is None or self.popen.returncode is not None:
            return
        self.peak_rss = self._peak_rss()
        self.popen.send_signal(first)
        end = time.monotonic() + ENDING_S
        while time.monotonic() < end:
            pid, status, used = os.wait4(self.popen.pid, os.WNOHANG)
            if pid:
                self.popen.returncode = os.waitstatus_to_exitcode(status)
                self.life_cpu_s = used.ru_utime + used.ru_stime
                break
            time.sleep(0.02)
        self.killed = self.popen.returncode is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


Attach = Callable[[int, Path], contextlib.AbstractContextManager[Session]]
Read = Callable[[Session], "Iterator[tuple[Stack, int]]"]


@dataclass(frozen=True, slots=True)
class Tool:
    """`family`: mappings or faults. `attach` puts it on a process; `under`, for a tool that must start the program,
    gives the words before and the environment. `not_for`: workloads that it cannot observe, and why."""

    name: str
    family: str
    attach: Attach | None = None
    under: "Callable[[Kind, Path], Workload] | None" = None
    read: Read | None = None
    program: str | None = None
    package: str | None = None
    dear: bool = False
    own: bool = False  # ours, and the floor: the comparison that matters most
    not_for: "dict[str, str] | None" = None
    sees: str = ""  # what its stacks are of, where they are not of the events asked for

    def given(self, session: Session, kind: Kind) -> Given | None:
        return None if self.read is None else judged(self.read(session), kind)


# --- how tools are put on a process ----------------------------------------------------------------------------------


def _holds_events(session: Session) -> bool:
    """Whether it or a child has perf events or BPF links open."""
    assert session.popen is not None
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(session.popen.pid)
        for member in [process, *process.children(recursive=True)]:
            for descriptor in Path(f"/proc/{member.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if re.search(r"perf_event|bpf.link|bpf_link", os.readlink(descriptor)):
                        return True
    return False


def _says_something(session: Session) -> bool:
    return session.output.stat().st_size > 0


def _answers(session: Session) -> bool:
    """perf record opens its events long before it enables them: from then on it answers (--control, "ping")."""
    control, answer = session.folder / "control", session.folder / "answer"
    with open(control, "r+b", buffering=0) as asking, open(answer, "r+b", buffering=0) as listening:
        asking.write(b"ping\n")
        return bool(select.select([listening], [], [], 1.0)[0] and os.read(listening.fileno(), 64))


def command(
    *words: str,
    settle: float = 1.5,
    armed: Callable[[Session], bool] = _holds_events,
    ending: signal.Signals = signal.SIGINT,
    environment: Callable[[Path], dict[str, str]] = lambda _folder: {},
) -> Attach:
    """A command with {pid} and {folder} in it. `armed`: what tells that it is at work."""

    @contextlib.contextmanager
    def run(pid: int, folder: Path) -> Iterator[Session]:
        filled = [word.format(pid=pid, folder=folder) for word in words]
        if armed is _answers:
            os.mkfifo(folder / "control")
            os.mkfifo(folder / "answer")
        with open(folder / "output", "wb") as output:
            popen = start(filled, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment(folder)})
        session = Session(popen, folder)
        try:
            _wait_armed(session, armed)
            time.sleep(settle)
            if not session.alive():
                raise CannotRun(f"{Path(filled[0]).name} ended: {_last_line(session)}")
            yield session
        finally:
            session.end(first=ending)
            _wake(pid)

    return run


def _wait_armed(session: Session, armed: Callable[[Session], bool]) -> None:
    assert session.popen is not None
    end = time.monotonic() + ARMED_S
    while time.monotonic() < end and session.alive():
        if armed(session):
            return
        time.sleep(0.05)
    if session.alive():
        raise CannotRun(f"not at work after {ARMED_S:.0f} s: {_last_line(session)}")


def _last_line(session: Session) -> str:
    lines = [line for line in session.text().splitlines() if line.strip()]
    code = session.popen.returncode if session.popen is not None else None
    return f"{code}: {lines[-1].strip()[:200] if lines else 'said nothing'}"


def _wake(pid: int) -> None:
    """A debugger that was killed can leave its process stopped."""
    with contextlib.suppress(OSError, IndexError):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt":
            os.kill(pid, signal.SIGCONT)


def floor(tracepoints: dict[str, str]) -> Attach:
    @contextlib.contextmanager
    def run(_pid: int, folder: Path) -> Iterator[Session]:
        engine = ebpf.Engine(str(HERE / "tracer_floor.bpf.c"), {})
        try:
            engine.attach(dict.fromkeys(tracepoints, "on_event"))
            engine.stop_run_counts()
            time.sleep(0.3)
            yield Session(None, folder)
        finally:
            engine.close()

    return run


def memforensics(*words: str, program: str = str(MEMFORENSICS)) -> Attach:
    """As a user starts it. Run times of its programs are counted all of the first two seconds: those are waited for."""
    return command(program, *words, "{pid}", "--duration", "3600s", "--json", settle=3.0)


def has_option(what: str, option: str) -> bool:
    return (
        option in subprocess.run([MEMFORENSICS, what, "--help"], stdout=subprocess.PIPE, text=True, check=True).stdout
    )


# --- how outputs are read --------------------------------------------------------------------------------------------


def by_text(parse: "Callable[[str], Iterator[tuple[Stack, int]]]") -> Read:
    return lambda session: parse(session.text())


def by_perf_script(session: Session) -> "Iterator[tuple[Stack, int]]":
    words: list[str | Path] = [
        "perf",
        "script",
        "-i",
        session.folder / "perf.data",
        "--no-inline",
        "-F",
        "event,ip,sym",
    ]
    script = start(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace")
    assert script.stdout is not None
    try:
        yield from stacks.of_perf_script(script.stdout)  # type: ignore[arg-type]
    finally:
        script.kill()
        script.stdout.close()
        script.wait()


def by_memray(session: Session) -> "Iterator[tuple[Stack, int]]":
    from memray import AllocatorType, FileReader

    with FileReader(session.folder / "memray.bin") as reader:
        for record in reader.get_allocation_records():
            if record.allocator != AllocatorType.MMAP:
                continue
            try:
                frames = record.hybrid_stack_trace()
            except (NotImplementedError, RuntimeError):
                frames = record.stack_trace()
            stack = [
                f"{Path(file).name}:{name}" if file.endswith(".py") else stacks.named(name) for name, file, _ in frames
            ]
            yield stack, record.n_allocations


def by_heaptrack(session: Session) -> "Iterator[tuple[Stack, int]]":
    folded = session.folder / "folded"
    words: list[str | Path] = [
        "heaptrack_print",
        "-f",
        session.folder / "heaptrack.txt",
        "-F",
        folded,
        "--flamegraph-cost-type",
        "allocations",
    ]
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=ENDING_S, check=False)
    if folded.exists():
        yield from stacks.of_folded(folded.read_text(errors="replace"))


# --- tools that must start the program -------------------------------------------------------------------------------


def under_memray(kind: Kind, folder: Path) -> Workload:
    launch = kind.launch()
    assert launch.python is not None
    ours = HERE.parent / ".venv" / "bin" / "python"
    has_memray = (
        subprocess.run([launch.python, "-c", "import memray"], stderr=subprocess.DEVNULL, check=False).returncode == 0
    )
    python = launch.python if has_memray else Path(sys.executable) if not ours.exists() else ours
    path = {} if has_memray or launch.modules is None else {"PYTHONPATH": str(launch.modules)}
    words = [
        python,
        "-u",
        "-m",
        "memray",
        "run",
        "--quiet",
        "--native",
        "--output",
        folder / "memray.bin",
        *launch.words,
    ]
    return Workload.run(words, {**launch.environment, **path}, load=kind.load)


def under_heaptrack(kind: Kind, folder: Path) -> Workload:
    """What the script `heaptrack` does, without its shell between us and the program."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    interpreter = next(HEAPTRACK.rglob("heaptrack_interpret"))
    with open(folder / "heaptrack.txt", "wb") as output:
        reader = start(["sh", "-c", 'exec "$0" < "$1"', interpreter, pipe], stdout=output, stderr=subprocess.DEVNULL)
    preload = {"LD_PRELOAD": str(HEAPTRACK / "libheaptrack_preload.so"), "DUMP_HEAPTRACK_OUTPUT": str(pipe)}
    try:
        launch = kind.launch()
        workload = Workload.run(launch.command, {**launch.environment, **preload}, load=kind.load)
    except BaseException:
        reader.kill()
        reader.wait()
        raise
    workload.others.append(reader)
    return workload


# --- all of them -----------------------------------------------------------------------------------------------------

_MAP_EVENTS = "syscalls:sys_exit_mmap,syscalls:sys_enter_munmap"
_BPF_MAPS = "tracepoint:syscalls:sys_exit_mmap /pid == {pid}/ {{ @[ustack] = count(); }} "
_BPF_MAPS += "tracepoint:syscalls:sys_enter_munmap /pid == {pid}/ {{ @freed = count(); }}"
_BPF_FAULTS = "tracepoint:exceptions:page_fault_user /pid == {pid}/ {{ @[ustack] = count(); }} "
_BPF_FAULTS += "tracepoint:exceptions:page_fault_kernel /pid == {pid}/ {{ @[ustack] = count(); }}"
_BPF_RAW = "tracepoint:raw_syscalls:sys_enter /pid == {pid}/ {{ @ = count(); }}"
_RECORD = ("perf", "record", "-q", "-N", "-o", "{folder}/perf.data", "-p", "{pid}")
_PERF = (*_RECORD, "--control", "fifo:{folder}/control,{folder}/answer")


def bcc_headers(folder: Path) -> dict[str, str]:
    """bcc's own tools want the kernel's headers: the few that they need are those of the package, with one change (a
    constant expression where memleak declares a table)."""
    shutil.copytree(ebpf.SOURCES / "include", folder / "include")
    (folder / "include/linux/log2.h").write_text(
        "#define roundup_pow_of_two(n) (1UL << (64 - __builtin_clzl((n) - 1)))\n"
    )
    machine = os.uname().machine
    return {"BCC_KERNEL_SOURCE": str(folder), "CPATH": f"/usr/include:/usr/include/{machine}-linux-gnu"}


def _perf(name: str, family: str, *words: str, dear: bool = False) -> Tool:
    attach = command(*words, armed=_answers, settle=0.5)
    return Tool(name, family, attach, read=by_perf_script, program="perf", package="linux-perf", dear=dear)


def _bpftrace(family: str, script: str, name: str = "bpftrace ustack") -> Tool:
    attach, read = command("bpftrace", "-e", script), by_text(stacks.of_bpftrace)
    return Tool(name, family, attach, read=read, program="bpftrace", package="bpftrace")


def _perf_trace(name: str, family: str, *words: str) -> Tool:
    attach, read = command("perf", "trace", *words, "-p", "{pid}"), by_text(stacks.of_calls)
    return Tool(name, family, attach, read=read, program="perf", package="linux-perf", dear=True)


def _dear(name: str, program: str, package: str, attach: Attach, read: Read) -> Tool:
    return Tool(name, "mappings", attach, read=read, program=program, package=package, dear=True)


_ON_PID = ("-p", "{pid}", "-x", str(HERE / "tracer_catch.gdb"))
GDB = ("gdb", "-nx", "-q", "-batch", "-iex", "set may-insert-breakpoints off", *_ON_PID)
STRACE = ("strace", "-f", "-e", "trace=mmap,munmap")
MEMLEAK = ("memleak-bpfcc", "-p", "{pid}", "-o", "0", "1")
RAW_SYSCALLS = _bpftrace("mappings", _BPF_RAW, "bpftrace on raw_syscalls")


def _of_mappings() -> Iterator[Tool]:
    ours = by_text(stacks.of_memforensics)
    yield Tool("floor", "mappings", floor(programs.TRACEPOINTS), own=True)
    yield Tool("memforensics", "mappings", memforensics("trace-mmap"), read=ours, own=True)
    if BEFORE:
        yield Tool("memforensics before", "mappings", memforensics("trace-mmap", program=BEFORE), read=ours, own=True)
    bounded = memforensics("trace-mmap", "--overhead", "1%")
    yield Tool("memforensics --overhead 1%", "mappings", bounded, read=ours, own=True)
    yield _bpftrace("mappings", _BPF_MAPS)
    yield _perf("perf record -g", "mappings", *_PERF, "-e", _MAP_EVENTS, "-g")
    yield _perf("perf record --call-graph dwarf", "mappings", *_PERF, "-e", _MAP_EVENTS, "--call-graph", "dwarf")
    yield _perf_trace("perf trace", "mappings", "-e", "mmap,munmap")
    memleak = command(*MEMLEAK, environment=bcc_headers)
    yield _dear("bcc memleak", "memleak-bpfcc", "bpfcc-tools", memleak, by_text(stacks.of_memleak))
    calls = command(*STRACE, "-o", "{folder}/calls", "-p", "{pid}", armed=_says_something, settle=0.5)
    yield _dear("strace", "strace", "strace", calls, lambda s: stacks.of_calls(_head(s.folder / "calls")))
    caught = command(*GDB, armed=_says_something, settle=4.0, ending=signal.SIGTERM)
    yield _dear("gdb, catch syscall + bt", "gdb", "gdb", caught, by_text(stacks.of_gdb))
    not_c = {"churn": "observes Python programs only"}
    yield Tool("memray run --native", "mappings", under=under_memray, read=by_memray, dear=True, not_for=not_c)
    yield Tool(
        "heaptrack",
        "mappings",
        under=under_heaptrack,
        read=by_heaptrack,
        program="heaptrack_print",
        package="heaptrack",
        dear=True,
        sees="of malloc (mmap is not seen): ",
    )


def _of_faults() -> Iterator[Tool]:
    yield Tool("floor", "faults", floor(fault_programs.TRACEPOINTS), own=True)
    yield Tool("memforensics", "faults", memforensics("trace-faults"), read=by_text(stacks.of_memforensics), own=True)
    if BEFORE:
        before = memforensics("trace-faults", program=BEFORE)
        yield Tool("memforensics before", "faults", before, read=by_text(stacks.of_memforensics), own=True)
    bounded = memforensics("trace-faults", "--overhead", "1%")
    yield Tool("memforensics --overhead 1%", "faults", bounded, read=by_text(stacks.of_memforensics), own=True)
    yield _bpftrace("faults", _BPF_FAULTS)
    yield _perf("perf record -e page-faults -g, each", "faults", *_PERF, "-e", "page-faults", "-c", "1", "-g")
    yield _perf("perf record -e page-faults -g, 4000 a second", "faults", *_PERF, "-e", "page-faults", "-g")
    yield _perf_trace("perf trace -F all", "faults", "-F", "all", "--no-syscalls")


def _head(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(LARGEST_OUTPUT).decode(errors="replace")


TOOLS = {(tool.family, tool.name): tool for tool in (*_of_mappings(), *_of_faults())}


def availability(tool: Tool) -> str | None:
    """Why it cannot run here; None when it can."""
    if tool.program is not None and shutil.which(tool.program) is None:
        return f"{tool.program} is not installed (Debian: {tool.package})"
    command_name = "trace-mmap" if tool.family == "mappings" else "trace-faults"
    if "--overhead" in tool.name and not has_option(command_name, "--overhead"):
        return f"{command_name} has no --overhead"
    return None


def install(tools: "list[Tool]") -> None:
    """What lacks, from the distribution, when we may."""
    lacking = sorted({t.package for t in tools if t.package and t.program and shutil.which(t.program) is None})
    if not lacking:
        return
    words = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *lacking]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"missing here:  sudo {' '.join(words)}", file=sys.stderr)
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update", "-q"], words):
        subprocess.run(step, stdout=subprocess.DEVNULL, env=environment, check=False)
