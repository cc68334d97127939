"""Disposable real processes for live tests. They print "ready"; tests wait for this line, never for a time."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

TESTS = Path(__file__).parent
LEAKERS = TESTS / "leakers"
EXAMPLE = TESTS.parent / "examples" / "ucx_rcache_leak" / "run.py"


class Child:
    """A child process. `read_line()` reads what it prints; `tell(text)` writes a line to its stdin."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen
        self.pid = popen.pid
        self._buffer = b""

    def read_line(self, timeout: float = 20.0) -> str:
        """The next line of its output, without the newline. AssertionError if none comes in `timeout` seconds."""
        assert self.popen.stdout is not None
        end = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            readable = left > 0 and select.select([self.popen.stdout], [], [], left)[0]
            assert readable, f"no line from {self.pid}"
            piece = os.read(self.popen.stdout.fileno(), 65536)
            assert piece, f"process {self.pid} ended (exit code {self.popen.wait()})"
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def said(self, word: str) -> bool:
        """Whether it has printed a line that begins with `word`. Does not wait."""
        assert self.popen.stdout is not None
        while select.select([self.popen.stdout], [], [], 0)[0]:
            if self.read_line(1).startswith(word):
                return True
        return False

    def wait_for(self, word: str, timeout: float = 20.0) -> str:
        """The next line that begins with `word`. Skips the lines before it."""
        while True:
            line = self.read_line(timeout)
            if line.startswith(word):
                return line

    def tell(self, text: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(text.encode() + b"\n")
        self.popen.stdin.flush()

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    ready: str | None = "ready",
    timeout: float = 30.0,
) -> Iterator[Child]:
    """Runs a process during the block, after it printed a line that begins with `ready`. Kills its process group at
    the end."""
    popen = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    child = Child(popen)
    try:
        if ready is not None:
            child.wait_for(ready, timeout)
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
        for stream in (popen.stdin, popen.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def python(script: str, *args: str, interpreter: str = sys.executable) -> list[str | Path]:
    """The command that runs tests/leakers/`script`."""
    return [interpreter, "-u", LEAKERS / script, *args]


def interpreters() -> dict[str, str]:
    """Version ("3.9") -> path: the running Python, and those of pyenv. test_gate.py requires every supported version,
    so a missing one is noticed."""
    own = Path(sys.base_prefix)  # perhaps one of pyenv
    beside = own.parents[1] if own.parent.name == "versions" else Path.home() / ".pyenv"
    root = Path(os.environ.get("PYENV_ROOT") or beside)
    found = {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
    for path in sorted(root.glob("versions/3.*/bin/python3")):
        found.setdefault(".".join(path.parts[-3].split(".")[:2]), str(path))
    return found


def compiled(source: str, *flags: str, compiler: str = "gcc") -> Path:
    """The program of tests/leakers/`source` (C). It is compiled when the source is newer."""
    kind = "" if compiler == "gcc" else f"-{compiler}"
    binary = LEAKERS / "bin" / (Path(source).stem + kind + "".join(flags).replace("/", "_").replace(" ", ""))
    origin = LEAKERS / source
    if not binary.exists() or binary.stat().st_mtime < origin.stat().st_mtime:
        binary.parent.mkdir(exist_ok=True)
        fresh = binary.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, "-g", "-O1", *flags, "-o", fresh, origin, "-lpthread", "-ldl"], check=True)
        fresh.rename(binary)
    return binary
