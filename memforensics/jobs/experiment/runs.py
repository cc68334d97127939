"""Runs a command under variants of its environment in turn; observes and ends each run."""

import contextlib
import random
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memforensics.analysis.effects import PLAIN, compare_variants, exit_text
from memforensics.case.model import Case, VariantResult, VariantRun
from memforensics.errors import Interrupted, ProbeFailed, TargetError, UsageError
from memforensics.jobs.experiment.command import started
from memforensics.jobs.experiment.command_guard import TERM_SECONDS
from memforensics.jobs.observe.progress import OnProgress, Progress
from memforensics.jobs.observe.recorder import Recorder, new_meta
from memforensics.jobs.observe.tree import TreeObserver
from memforensics.units import duration_text

TICK_S = 0.5
EARLY_SECONDS = 3.0  # a command that ends sooner cannot be observed


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to run the command: its name, and what it sets in the environment."""

    name: str
    env: tuple[tuple[str, str], ...] = ()


def parse_variants(env: Sequence[str], variants: Sequence[str]) -> tuple[Variant, ...]:
    """The plain command, a variant for each `A=1` of `env`, and one for each `A=1 B=2` of `variants` (shell quoting).
    UsageError if there is no variant, or one is not an assignment."""
    found = [Variant(PLAIN)]
    for words in [*([text] for text in env), *(_split(text) for text in variants)]:
        pairs = tuple(_assignment(word) for word in words)
        name = " ".join(f"{k}={v}" for k, v in pairs)
        if name and name not in {v.name for v in found}:
            found.append(Variant(name, pairs))
    if len(found) == 1:
        raise UsageError("prove needs a variant", enable="--env NAME=VALUE, or --variant 'A=1 B=2'")
    return tuple(found)


def run_order(variants: Sequence[Variant], rounds: int, seed: int) -> list[Variant]:
    """Each variant once per round, in a new random order, so that a drift over time favours none of them."""
    rng = random.Random(seed)
    return [variant for _ in range(rounds) for variant in rng.sample(list(variants), len(variants))]


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
    """Runs the command under each variant for `seconds`, `rounds` times in `run_order`, and compares the growth.

    UsageError if the command cannot be started; ProbeFailed if the plain one fails at once; Interrupted at Ctrl-C.
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
    return case, compare_variants(case)


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
                run.end(list(observer.members.values()))
        lasted = time.monotonic() - began
        ended_itself = lasted < seconds - TICK_S
        code = run.popen.wait() if ended_itself else None
        if variant.name == PLAIN and code is not None and lasted < EARLY_SECONDS + TERM_SECONDS:
            raise ProbeFailed(
                f"failed to observe: the command {exit_text(code)} after {duration_text(lasted)}",
                why=" / ".join(run.last_lines()) or "it printed nothing",
                enable=f"run it alone: {shlex.join(command)}",
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


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--variant {text!r} cannot be split into words", why=str(error)) from error


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"{text!r} is not an assignment", enable="--env NAME=VALUE")
    return name, value
