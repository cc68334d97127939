"""The programs that are traced in the benchmark, and what they serve a second."""

import contextlib
import ctypes
import hashlib
import os
import re
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples" / "ucx_rcache_leak"
UCX_VERSION = "1.19.0"
TORCH_PACKAGES = ("torch==2.13.0", "numpy", "starlette>=0.40,<2", "uvicorn>=0.30,<1", "memray>=1.12")
TORCH_CONNECTIONS = 4
SILENT_S = 60.0  # without a line, after which a workload is given up
SLOW_S = 20.0  # at most for one measurement of a workload that hardly moves
ENOUGH_STEPS = 4
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h

_libc = ctypes.CDLL(None)


class WorkloadEnded(Exception):
    """It is gone, or says nothing any more."""


def die_with_us() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start(words: Sequence[str | Path], **options: object) -> "subprocess.Popen[bytes]":
    """A process in a session of its own that the kernel kills when we end, by SIGKILL too. To be called from the main
    thread: the signal comes when the *thread* that forked ends."""
    filled = [str(word) for word in words]
    return subprocess.Popen(filled, start_new_session=True, preexec_fn=die_with_us, **options)  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True, slots=True)
class Speed:
    """Between two lines of a workload. `cpu_s`: of the process, for one request; None where it does not say."""

    rate: float
    cpu_s: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a workload: the program, what to set, and where its modules are for a tool that brings a Python of
    its own (memray). `python`: None for a program in C."""

    python: Path | None
    words: tuple[str | Path, ...]
    modules: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def command(self) -> tuple[str | Path, ...]:
        return self.words if self.python is None else (self.python, "-u", *self.words)


@dataclass(slots=True)
class Workload:
    """A running process that prints `served N ... [at T] [cpu S]`; figures between two of its lines."""

    popen: "subprocess.Popen[bytes]"
    errors: Path
    others: "list[subprocess.Popen[bytes]]" = field(default_factory=list)  # the load
    _rest: bytes = b""

    @classmethod
    def run(
        cls, command: Sequence[str | Path], extra: dict[str, str] | None = None, *, load: bool = False
    ) -> "Workload":
        descriptor, name = tempfile.mkstemp(prefix="tracer-")
        with os.fdopen(descriptor, "wb") as errors:
            popen = start(command, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **(extra or {})})
        self = cls(popen, Path(name))
        try:
            if load:
                port = self._word("port")
                self.others.append(start([sys.executable, HERE / "tracer_load.py", port, str(TORCH_CONNECTIONS)]))
            while not self.line()[1]:  # the first request: everything is loaded
                pass
        except BaseException:
            self.close()
            raise
        return self

    @property
    def pid(self) -> int:
        return self.popen.pid

    def _read(self, wanted: str) -> list[str]:
        stream = self.popen.stdout
        assert stream is not None
        end = time.monotonic() + SILENT_S
        while True:
            while b"\n" not in self._rest:
                if not select.select([stream], [], [], max(0.0, end - time.monotonic()))[0]:
                    raise WorkloadEnded(f"said nothing for {SILENT_S:.0f} s")
                piece = os.read(stream.fileno(), 65536)
                if not piece:
                    raise WorkloadEnded(self.how_it_ended())
                self._rest += piece
            line, _, self._rest = self._rest.partition(b"\n")
            words = line.decode(errors="replace").split()
            if words[:1] == [wanted]:
                return words

    def _word(self, name: str) -> str:
        return self._read(name)[1]

    def line(self) -> tuple[float, int, float | None]:
        """The next line that it prints from now on: (time, served, CPU seconds where it says so). WorkloadEnded."""
        words = self._read("served")
        named = dict(zip(words[::2], words[1::2], strict=False))
        cpu = float(named["cpu"]) if "cpu" in named else None
        return float(named.get("at", time.monotonic())), int(named["served"]), cpu

    def measure(self, seconds: float) -> Speed:
        """For about so long; longer where hardly anything is served. WorkloadEnded."""
        assert self.popen.stdout is not None
        while select.select([self.popen.stdout], [], [], 0)[0]:
            if not os.read(self.popen.stdout.fileno(), 65536):
                raise WorkloadEnded(self.how_it_ended())
        self._rest = b""
        self.line()  # perhaps a part of one
        first = last = self.line()
        steps, deadline = 0, time.monotonic() + max(SLOW_S, seconds)
        while last[0] - first[0] < seconds or (steps < ENOUGH_STEPS and time.monotonic() < deadline):
            before, last = last, self.line()
            steps += last[1] != before[1]
        if any(popen.poll() is not None for popen in self.others):
            raise WorkloadEnded("its load ended")
        served, took = last[1] - first[1], last[0] - first[0]
        cpu = None if first[2] is None or last[2] is None or not served else (last[2] - first[2]) / served
        return Speed(served / took, cpu, took)

    def how_it_ended(self) -> str:
        try:
            code = self.popen.wait(5)
        except subprocess.TimeoutExpired:
            return "closed its output"
        text = self.errors.read_text(errors="replace").strip().splitlines()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return f"{how}: {text[-1][:200]}" if text else how

    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def signal(self, number: signal.Signals) -> None:
        for popen in (self.popen, *self.others):
            with contextlib.suppress(ProcessLookupError):
                if popen.returncode is None:
                    os.killpg(popen.pid, number)

    def close(self) -> None:
        for popen in (*self.others, self.popen):
            with contextlib.suppress(ProcessLookupError):
                if popen.returncode is None:
                    os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()
        if self.popen.stdout is not None:
            self.popen.stdout.close()
        self.errors.unlink(missing_ok=True)


# --- what is built and made, once ------------------------------------------------------------------------------------


def compiled() -> Path:
    """tracer_workload.c with frame pointers, as a program that wants to be traced is built."""
    binary = cache() / "tracer_workload"
    flags = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"]
    fresh = binary.with_suffix(f".{os.getpid()}")
    subprocess.run(["gcc", *flags, "-o", fresh, HERE / "tracer_workload.c"], check=True)
    fresh.replace(binary)
    return binary


def cache() -> Path:
    folder: Path = runpy.run_path(str(EXAMPLE / "run.py"))["default_cache"]()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def ucx_python() -> Path:
    words: list[str | Path] = [sys.executable, EXAMPLE / "run.py", "--ucx-version", UCX_VERSION, "--prepare"]
    return Path(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def torch_python() -> Path:
    """The Python of an environment with torch and uvicorn in it, made when it is not there yet (200 MB to fetch where
    pip finds a build for the CPU alone, some GB where not: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL choose)."""
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    what = hashlib.sha256(os.fsencode(base) + " ".join(TORCH_PACKAGES).encode()).hexdigest()[:8]
    folder = cache() / f"torch-cp{sys.version_info.major}{sys.version_info.minor}-{what}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"making {folder} ({' '.join(TORCH_PACKAGES)}; once) ...", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([base, "-m", "venv", folder], check=True)
        pip: list[str | Path] = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--prefer-binary",
        ]
        subprocess.run([*pip, *TORCH_PACKAGES], check=True, stdout=sys.stderr)
        (folder / "complete").touch()
    return python


def site_packages(python: Path) -> Path:
    return next((python.parent.parent / "lib").glob("python3.*/site-packages"))


# --- the workloads ---------------------------------------------------------------------------------------------------


def _program(mode: str) -> Callable[[], Launch]:
    return lambda: Launch(None, (compiled(), mode))


def _ucx() -> Launch:
    options = ["--rate", "max", "--threads", "1", "--report-every", "0.25", "--max-rss", "12G"]
    python = ucx_python()
    return Launch(python, (EXAMPLE / "service.py", *options), site_packages(python))


def _serve() -> Launch:
    return Launch(Path(sys.executable), (HERE / "tracer_service.py",))


def _torch() -> Launch:
    return Launch(torch_python(), (HERE / "tracer_torch.py",))


def _torch_trimmed() -> Launch:
    """Any of malloc's thresholds that is set stops glibc from raising the one above which a block is mapped."""
    return Launch(torch_python(), (HERE / "tracer_torch.py",), environment={"MALLOC_TRIM_THRESHOLD_": "65536"})


def _growing() -> Launch:
    return Launch(torch_python(), (HERE / "tracer_torch.py", "--grow"))


@dataclass(frozen=True, slots=True)
class Kind:
    """`paced`: it serves at a rate of its own, so CPU time a request is the figure. `line`: the Python file that a
    stack should lead to. `key`: what only the stack of the leak has, all of it."""

    name: str
    text: str
    launch: Callable[[], Launch]
    line: str | None = None
    key: "tuple[re.Pattern[str], ...]" = ()
    paced: bool = False
    load: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind("churn", "C, mmap+munmap of 16 KiB at full speed", _program("churn")),
        Kind("faults", "C, touches new pages at full speed", _program("faults")),
        Kind(
            "ucx",
            f"the UCX example at full speed (libucx {UCX_VERSION}), one thread",
            _ucx,
            line="service.py",
            key=(re.compile(".*munmap"), re.compile("^uc[sp]_")),  # UCX maps memory of its own inside munmap
        ),
        Kind(
            "serve",
            "500 requests a second, each maps 2 MiB and fills it by numpy",
            _serve,
            line="tracer_service.py",
            paced=True,
        ),
        Kind(
            "torch",
            f"a transformer of 4 layers on torch behind uvicorn, {TORCH_CONNECTIONS} connections that always ask",
            _torch,
            line="tracer_torch.py",
            load=True,
        ),
        Kind(
            "torch-trim",
            "the same with MALLOC_TRIM_THRESHOLD_=65536, as against growth: each tensor from 128 KiB on is a mapping",
            _torch_trimmed,
            line="tracer_torch.py",
            load=True,
        ),
        Kind(
            "growing", "torch is loaded; 1 MiB is mapped and kept 20 times a second", _growing, line="tracer_torch.py"
        ),
        Kind("getppid", "C, getppid at full speed", _program("getppid")),
        Kind("idle", "C, maps and unmaps ten times a second", _program("idle")),
    )
}


def run_plain(kind: Kind) -> Workload:
    launch = kind.launch()
    return Workload.run(launch.command, launch.environment, load=kind.load)
