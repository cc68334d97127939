"""The measurements: pairs on a workload, what others on the host pay, the time to the first result."""

import contextlib
import os
import pty
import re
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tracer_stacks import Given
from tracer_tools import ENDING_S, CannotRun, Session, Tool, availability
from tracer_workloads import Kind, Speed, Workload, WorkloadEnded, die_with_us, run_plain

LARGEST_RSS = 3 << 30  # of a workload that leaks: from then on it is started anew before the next turn
FAILURES = 2  # of a tool on a workload, after which it is not tried again


@dataclass(frozen=True, slots=True)
class Pair:
    """One measurement with a tool and the two without around it. `run` and `turn` say which pairs were neighbours."""

    run: str
    turn: int
    before: Speed
    during: Speed
    after: Speed
    tool_cpu_s: float | None  # while it was measured

    @property
    def throughput(self) -> float:
        return self.during.rate / ((self.before.rate + self.after.rate) / 2)

    @property
    def cpu(self) -> float | None:
        """CPU time a request with over without."""
        if self.during.cpu_s is None or self.before.cpu_s is None or self.after.cpu_s is None:
            return None
        return self.during.cpu_s / ((self.before.cpu_s + self.after.cpu_s) / 2)


@dataclass(slots=True)
class Cell:
    """A tool on a workload."""

    family: str
    tool: str
    workload: str
    pairs: list[Pair] = field(default_factory=list)
    given: Given | None = None
    words: str = ""
    failed: str = ""
    failures: int = 0
    peak_rss: int | None = None
    lives: list[tuple[float, float]] = field(default_factory=list)  # seconds that it ran, its CPU seconds, to its end

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "given": asdict(self.given) if self.given else None}


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def unhindered(workload: Workload, seconds: float) -> Speed:
    """Without a tool. WorkloadEnded, also where nothing is served (any more)."""
    speed = workload.measure(seconds)
    if not speed.rate:
        raise WorkloadEnded("serves nothing any more")
    return speed


# --- a workload and all tools, in turn -------------------------------------------------------------------------------


def measured(kind: Kind, tools: Sequence[tuple[Tool, int]], seconds: float) -> dict[str, Cell]:
    """Turns through all tools until each has its number of pairs: off, A, off, B, off, A, ... Tools that must start the
    program come afterwards, each with a plain one beside that stands still while the other is measured."""
    cells = {tool.name: Cell(tool.family, tool.name, kind.name) for tool, _ in tools}
    for tool, _ in tools:
        cells[tool.name].failed = (tool.not_for or {}).get(kind.name) or availability(tool) or ""
    run = f"{time.time():.0f}"
    attached = [(tool, pairs) for tool, pairs in tools if tool.attach is not None]
    if any(not cells[tool.name].failed for tool, _ in attached):
        _rounds(kind, attached, cells, run, seconds)
    for tool, pairs in tools:
        if tool.under is not None and not cells[tool.name].failed:
            _under(kind, tool, cells[tool.name], run, pairs, seconds)
    return cells


def _rounds(kind: Kind, tools: Sequence[tuple[Tool, int]], cells: dict[str, Cell], run: str, seconds: float) -> None:
    workload: Workload | None = None
    before: Speed | None = None
    try:
        for turn in range(max(pairs for _, pairs in tools)):
            if workload is not None and (workload.popen.poll() is not None or workload.rss_bytes() > LARGEST_RSS):
                workload.close()
                workload = None
            for tool, pairs in tools:
                cell = cells[tool.name]
                if turn >= pairs or cell.failed:
                    continue
                if workload is None or before is None:
                    workload = run_plain(kind)
                    before = unhindered(workload, seconds)
                try:
                    pair, after = _pair(kind, tool, workload, before, cell, run, turn, seconds)
                    cell.pairs.append(pair)
                    before = after
                    cpu = f", CPU {pair.cpu:.3f}" if pair.cpu else ""
                    say(f"{kind.name}: {tool.name}: {turn + 1} of {pairs}: throughput {pair.throughput:.4f}{cpu}")
                except (CannotRun, WorkloadEnded) as error:
                    cell.failures += 1
                    why = str(error)
                    if workload.popen.poll() is not None:
                        why = f"**ends the target** ({workload.how_it_ended()})"
                    if workload.popen.returncode is not None or isinstance(error, WorkloadEnded):
                        workload.close()
                        workload = None
                    say(f"{kind.name}: {tool.name}: {why}")
                    if cell.failures >= FAILURES:
                        cell.failed = f"{why}, {cell.failures} of {turn + 1}"
    finally:
        if workload is not None:
            workload.close()


def _pair(
    kind: Kind, tool: Tool, workload: Workload, before: Speed, cell: Cell, run: str, turn: int, seconds: float
) -> tuple[Pair, Speed]:
    assert tool.attach is not None
    with tempfile.TemporaryDirectory(prefix="tracer-") as folder:
        began = time.monotonic()
        with tool.attach(workload.pid, Path(folder)) as session:
            cpu_before = session.cpu_s()
            during = workload.measure(seconds)
            cpu_after = session.cpu_s()
            if not session.alive():
                raise CannotRun("it ended while it was measured")
        _look(tool, kind, session, cell)
        if session.life_cpu_s is not None:
            cell.lives.append((time.monotonic() - began, session.life_cpu_s))
        cell.peak_rss = max(filter(None, (cell.peak_rss, session.peak_rss)), default=None)
    after = unhindered(workload, seconds)
    used = cpu_after - cpu_before if cpu_after is not None and cpu_before is not None else None
    return Pair(run, turn, before, during, after, used), after


def _look(tool: Tool, kind: Kind, session: Session, cell: Cell) -> None:
    """What stacks its output has; the first output that has some is enough."""
    if cell.given is None or not cell.given.events:
        try:
            cell.given = tool.given(session, kind)
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            cell.words = f"its output could not be read: {error!r}"[:200]
        else:
            if session.killed and not (cell.given and cell.given.events):
                cell.words = f"nothing within {ENDING_S:.0f} s of its end"
                return
            cell.words = tool.sees + cell.given.words(kind) if cell.given is not None else "-"


def _under(kind: Kind, tool: Tool, cell: Cell, run: str, pairs: int, seconds: float) -> None:
    assert tool.under is not None
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="tracer-")))
        try:
            plain = run_plain(kind)
            opened.callback(plain.close)
            plain.signal(signal.SIGSTOP)
            traced = tool.under(kind, folder)
            opened.callback(traced.close)
            traced.signal(signal.SIGSTOP)

            def measure(workload: Workload) -> Speed:
                workload.signal(signal.SIGCONT)
                try:
                    return unhindered(workload, seconds) if workload is plain else workload.measure(seconds)
                finally:
                    workload.signal(signal.SIGSTOP)

            before = measure(plain)
            for turn in range(pairs):
                during, after = measure(traced), measure(plain)
                cell.pairs.append(Pair(run, turn, before, during, after, None))
                before = after
                say(f"{kind.name}: {tool.name}: {turn + 1} of {pairs}: throughput {cell.pairs[-1].throughput:.4f}")
            traced.signal(signal.SIGCONT)
            _end_softly(traced)
            _look(tool, kind, Session(None, folder), cell)
        except (WorkloadEnded, CannotRun, OSError) as error:
            cell.failed = f"does not run with it: {error}"
            say(f"{kind.name}: {tool.name}: {cell.failed}")


def _end_softly(workload: Workload) -> None:
    """So that a tool inside it can write what it knows; its load ends first."""
    for popen in workload.others:
        if "heaptrack_interpret" not in str(popen.args):
            popen.kill()
    workload.popen.send_signal(signal.SIGINT)
    end = time.monotonic() + 10
    stream = workload.popen.stdout
    assert stream is not None
    while time.monotonic() < end and workload.popen.poll() is None:
        if select.select([stream], [], [], 0.1)[0] and not os.read(stream.fileno(), 65536):
            time.sleep(0.05)
    if workload.popen.poll() is None:
        workload.popen.kill()
    workload.popen.wait()
    time.sleep(1.0)  # the interpreter of heaptrack reads to the end of its pipe


# --- what others pay -------------------------------------------------------------------------------------------------


def bystanders(
    traced: Kind, others: Sequence[Kind], tools: Sequence[Tool], pairs: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """ns of CPU an operation in a process that nobody traces, while `traced` is."""
    for kind in others:
        with contextlib.ExitStack() as opened:
            target, other = run_plain(traced), run_plain(kind)
            opened.callback(target.close)
            opened.callback(other.close)
            found: dict[str, list[tuple[float, float]]] = {}
            failed = {f"{tool.family}/{tool.name}": availability(tool) for tool in tools}
            before = _ns(other.measure(seconds))
            for turn in range(pairs):
                for tool in tools:
                    key = f"{tool.family}/{tool.name}"
                    if failed[key]:
                        continue
                    assert tool.attach is not None
                    try:
                        with (
                            tempfile.TemporaryDirectory(prefix="tracer-") as folder,
                            tool.attach(target.pid, Path(folder)),
                        ):
                            during = _ns(other.measure(seconds))
                    except CannotRun as error:
                        failed[key] = str(error)
                        continue
                    after = _ns(other.measure(seconds))
                    found.setdefault(key, []).append(((before + after) / 2, during))
                    say(f"{kind.name} untraced: {key}: {turn + 1} of {pairs}: {during - (before + after) / 2:+.1f} ns")
                    before = after
            for tool in tools:
                key = f"{tool.family}/{tool.name}"
                yield {
                    "family": tool.family,
                    "tool": tool.name,
                    "workload": kind.name,
                    "ns": found.get(key, []),
                    "failed": failed[key] or "",
                }


def _ns(speed: Speed) -> float:
    assert speed.cpu_s is not None
    return speed.cpu_s * 1e9


# --- the first result ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class First:
    """A command and what the first thing looks like that it shows."""

    tool: str
    words: tuple[str, ...]
    shows: str
    what: str
    environment: Callable[[Path], dict[str, str]] = lambda _folder: {}
    ending: signal.Signals = signal.SIGINT


def first_result(kind: Kind, first: First, times: int, limit_s: float = 30.0) -> list[float | None]:
    """Seconds from the start of the command, on a terminal, to the first match; None: not within the limit."""
    with contextlib.closing(run_plain(kind)) as target:
        return [_first(target.pid, first, limit_s) for _ in range(times)]


def _first(target: int, first: First, limit_s: float) -> float | None:
    with tempfile.TemporaryDirectory(prefix="tracer-") as name:
        words = [word.format(pid=target, folder=name) for word in first.words]
        environment = {**os.environ, **first.environment(Path(name)), "TERM": "xterm", "COLUMNS": "160", "LINES": "50"}
        began = time.monotonic()
        child, terminal = pty.fork()
        if child == 0:
            die_with_us()
            os.execvpe(words[0], words, environment)
        seen, found = b"", None
        pattern = re.compile(first.shows.encode(), re.MULTILINE)
        try:
            while time.monotonic() - began < limit_s:
                if not select.select([terminal], [], [], 0.05)[0]:
                    continue
                try:
                    seen += os.read(terminal, 65536)
                except OSError:  # it ended
                    break
                if pattern.search(seen):
                    found = time.monotonic() - began
                    break
        finally:
            _finish(child, terminal, first.ending)
        if found is None:
            say(f"first result: {first.tool}: nothing like {first.shows!r} in: {seen[-300:]!r}")
        return found


def _finish(child: int, terminal: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, how)
    end = time.monotonic() + 10
    gone = False
    while not gone and time.monotonic() < end:
        with contextlib.suppress(OSError):
            while select.select([terminal], [], [], 0.02)[0] and os.read(terminal, 65536):
                pass
        gone = os.waitpid(child, os.WNOHANG)[0] != 0
        time.sleep(0.02)
    if not gone:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os.close(terminal)
