"""Running a command ourselves: under variants of its environment, in turn, each run observed and ended by us.

`started` is what prove and ci share: the command in a session of its own, its output drained, and at the end everything
that was started ended, whatever happened.
"""

import contextlib
import os
import random
import re
import shlex
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memforensics.analysis.effects import PLAIN, compare, ending
from memforensics.case.model import Case, VariantResult, VariantRun
from memforensics.errors import Interrupted, ProbeFailed, TargetError, UsageError
from memforensics.jobs.observe import Recorder, TreeObserver, new_meta
from memforensics.target import Process
from memforensics.units import duration_text

TICK_S = 0.5
TERM_SECONDS = 3.0  # between SIGTERM and SIGKILL
EARLY_SECONDS = 3.0  # a command that ends sooner cannot be observed
_UNITS = re.compile(rb"units (\d+(?:\.\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to run the command: its name and what is set in the environment."""

    name: str
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an experiment stands."""

    phase: str
    seconds_left: float
    growth_bytes: int | None = None


OnProgress = Callable[[Progress], None]


@dataclass(slots=True)
class Started:
    """A command that runs. Its output is drained: the last lines are kept, and the work it reports (`units N`, a line
    on stdout, a running total)."""

    popen: "subprocess.Popen[bytes]"
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=12))
    units_done: float | None = None
    drained: threading.Event = field(default_factory=threading.Event)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def last_lines(self, count: int = 3) -> list[str]:
        """The last lines of its output. After its end: once all of it is read."""
        if self.popen.poll() is not None:
            self.drained.wait(timeout=1.0)
        return list(self.tail)[-count:]

    def drain(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            found = _UNITS.fullmatch(line)
            if found:
                self.units_done = float(found[1])
            else:
                self.tail.append(line.decode("utf-8", "backslashreplace").rstrip())
        self.drained.set()


def parse_variants(env: Sequence[str], variants: Sequence[str]) -> tuple[Variant, ...]:
    """The plain command, one variant for each `A=1` of `env`, one for each `A=1 B=2` of `variants` (shell quoting).
    UsageError when one is no assignment, or none is given."""
    found = [Variant(PLAIN)]
    for words in [*([text] for text in env), *(_split(text) for text in variants)]:
        pairs = tuple(_assignment(word) for word in words)
        name = " ".join(f"{k}={v}" for k, v in pairs)
        if name and name not in {v.name for v in found}:
            found.append(Variant(name, pairs))
    if len(found) == 1:
        raise UsageError("no variant to try", enable="--env NAME=VALUE, or --variant 'A=1 B=2'")
    return tuple(found)


def run_order(variants: Sequence[Variant], rounds: int, seed: int) -> list[Variant]:
    """Each variant once a round, in a new random order each round: what drifts with time favours none of them."""
    rng = random.Random(seed)
    return [variant for _ in range(rounds) for variant in rng.sample(list(variants), len(variants))]


@contextlib.contextmanager
def started(command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[Started]:
    """The command in a session of its own, with `env` added. At the end it and its process group get SIGTERM, and
    SIGKILL TERM_SECONDS later. UsageError when it cannot be started."""
    if not command:
        raise UsageError("no command given", enable="... -- COMMAND ARGUMENTS")
    try:
        popen = subprocess.Popen(
            list(command),
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise UsageError(f"cannot start {command[0]}", why=error.strerror or str(error)) from error
    run = Started(popen)
    reader = threading.Thread(target=run.drain, daemon=True, name="drain")
    reader.start()
    try:
        yield run
    finally:
        _end(popen)
        reader.join(timeout=1.0)
        if not reader.is_alive() and popen.stdout is not None:
            popen.stdout.close()


def experiment(
    command: Sequence[str],
    variants: Sequence[Variant],
    *,
    seconds: float,
    rounds: int,
    record: Path | None = None,
    seed: int | None = None,
    on_progress: OnProgress = lambda _: None,
) -> tuple[Case, tuple[VariantResult, ...]]:
    """Runs the command under each variant, `rounds` times in turn (in a new order each round, by the case's seed), each
    for `seconds`; compares their growth.

    UsageError when the command cannot be started; ProbeFailed when the plain one fails at once; Interrupted at Ctrl-C.
    """
    meta = new_meta("prove", None, seed=seed)
    sequence = run_order(variants, rounds, meta.seed)
    with Recorder(meta, record) as recorder:
        try:
            for order, variant in enumerate(sequence):
                left = (len(sequence) - order) * seconds
                recorder.put([_run(command, variant, order, seconds, recorder, on_progress, left)])
        except KeyboardInterrupt:
            raise Interrupted(str(record) if record else None) from None
        case = recorder.case()
    return case, compare(case)


def _run(
    command: Sequence[str],
    variant: Variant,
    order: int,
    seconds: float,
    recorder: Recorder,
    on_progress: OnProgress,
    seconds_left: float,
) -> VariantRun:
    with started(command, dict(variant.env)) as run:
        began = time.monotonic()
        with contextlib.suppress(TargetError), TreeObserver(run.pid, interval_s=TICK_S) as observer:
            try:
                recorder.put(observer.open())
                for records in observer.ticks(seconds):
                    recorder.put(records)
                    on_progress(Progress(f"run {order + 1}, {variant.name}", seconds_left - time.monotonic() + began))
            finally:
                recorder.put(observer.losses())
                _end(run.popen, list(observer.members.values()))
        lasted = time.monotonic() - began
        ended_itself = lasted < seconds - TICK_S
        code = run.popen.wait() if ended_itself else None
        if variant.name == PLAIN and code is not None and lasted < EARLY_SECONDS + TERM_SECONDS:
            raise ProbeFailed(
                f"failed to observe: the command {ending(code)} after {duration_text(lasted)}",
                why=" / ".join(run.last_lines()) or "it printed nothing",
                enable=shlex.join(command),
            )
        return VariantRun(
            variant=variant.name,
            env=variant.env,
            order=order,
            root_pid=run.pid,
            exit_code=code,
            units_done=run.units_done,
            seconds=round(lasted, 3),
        )


def _end(popen: "subprocess.Popen[bytes]", others: Sequence[Process] = ()) -> None:
    """Ends the command, its process group, and those of its tree (`others`, held by identity) that left the group."""
    _signal_all(popen, others, signal.SIGTERM)
    end = time.monotonic() + TERM_SECONDS
    while time.monotonic() < end:
        if popen.poll() is not None and all(process.left_how() for process in others):
            break
        time.sleep(0.05)
    _signal_all(popen, others, signal.SIGKILL)
    popen.wait()


def _signal_all(popen: "subprocess.Popen[bytes]", others: Sequence[Process], number: signal.Signals) -> None:
    # The group lives on while any member does, and its number is given to no other process until then.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(popen.pid, number)
    for process in others:
        if process.pidfd is not None and process.pid != popen.pid:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(process.pidfd, number)


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--variant {text!r} cannot be read", why=str(error)) from error


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"{text!r} is no assignment", enable="--env NAME=VALUE")
    return name, value
