"""How often sustained growth is called a leak without a known cause, on seeded synthetic processes.

    python benchmarks/sustained_growth.py [--series 300] [--markdown docs/calibration.md]

Each process is observed for 30 minutes, 2 hours or 6 hours, sampled every 5 to 60 s, and has run for hours before. The
rule is in `memforensics/analysis/sustained_growth.py`. There is no trace, only samples."""

import argparse
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import exp, log1p, pi, sin
from pathlib import Path

from memforensics.analysis.series import growth as growth_of
from memforensics.analysis.sustained_growth import sustained_growth
from memforensics.case.model import Anchor, Case, CaseMeta, Sample
from memforensics.units import GIB, MIB, NS_PER_S, duration_text

OBSERVATIONS = ((1800.0, 5.0), (7200.0, 20.0), (21600.0, 60.0))  # seconds, interval
Level = Callable[[float], float]  # seconds -> bytes
BEGIN, END = "<!-- outlasted -->", "<!-- end outlasted -->"


@dataclass(frozen=True)
class Kind:
    name: str
    what: str
    make: Callable[[random.Random, float], Level]


def _saw(rng: random.Random, window: float) -> Level:
    period, height = rng.uniform(window / 60, window / 1.2), rng.uniform(0.05, 4) * GIB
    phase, noise, base = rng.random() * period, rng.uniform(0, 20) * MIB, rng.uniform(0.2, 16) * GIB
    return lambda t: base + height * ((t + phase) % period) / period + rng.gauss(0, noise)


def _daily(rng: random.Random, window: float) -> Level:
    height, phase, base = rng.uniform(0.2, 16) * GIB, rng.random(), rng.uniform(0.2, 16) * GIB
    noise = rng.uniform(0, 40) * MIB
    return lambda t: base + height * (0.5 + 0.5 * sin(2 * pi * (t / 86400 + phase))) + rng.gauss(0, noise)


def _walk(rng: random.Random, window: float) -> Level:
    size, state = rng.uniform(0.1, 2) * GIB / window**0.5, [0.0, rng.uniform(1, 16) * GIB]

    def at(t: float) -> float:
        state[1] += rng.gauss(0.0, size * max(t - state[0], 0.0) ** 0.5)
        state[0] = t
        return max(state[1], 100 * MIB)

    return at


def _cache(rng: random.Random, window: float, end: tuple[float, float]) -> Level:
    until, height = rng.uniform(*end) * window, rng.uniform(0.5, 16) * GIB
    base, churn = rng.uniform(0.2, 16) * GIB, rng.uniform(0.0, 0.02)
    return lambda t: base + height * (min(t / until, 1.0) - churn * rng.random())


def _warm_up(rng: random.Random, window: float) -> Level:
    tau, height, base = rng.uniform(0.1, 1.0) * window, rng.uniform(0.5, 16) * GIB, rng.uniform(0.2, 16) * GIB
    return lambda t: base + height * (1 - exp(-t / tau))


def _logarithm(rng: random.Random, window: float) -> Level:
    tau, height, base = rng.uniform(0.002, 0.1) * window, rng.uniform(0.1, 2) * GIB, rng.uniform(0.2, 16) * GIB
    return lambda t: base + height * log1p(t / tau)


def _flat(rng: random.Random, window: float) -> Level:
    base, noise = rng.uniform(0.2, 16) * GIB, rng.uniform(0, 200) * MIB
    return lambda t: base + rng.gauss(0, noise)


def _steps(rng: random.Random, window: float) -> Level:
    jumps = [(rng.random() * window, rng.uniform(0.1, 2) * GIB) for _ in range(rng.randint(1, 8))]
    base = rng.uniform(0.2, 16) * GIB
    return lambda t: base + sum(height for at, height in jumps if t >= at)


def _leak(rng: random.Random, window: float) -> Level:
    base, rise, noise = rng.uniform(0.2, 16) * GIB, rng.uniform(1.1, 8) * GIB, rng.uniform(0, 20) * MIB
    return lambda t: base + rise * t / window + rng.gauss(0, noise)


def _leak_under_saw(rng: random.Random, window: float) -> Level:
    saw, rise = _saw(rng, window / 4), rng.uniform(1.1, 8) * GIB
    return lambda t: saw(t) + rise * t / window


KINDS = (
    Kind("flat", "noise of up to 200 MiB", _flat),
    Kind("GC saw-teeth", "1.2 to 60 teeth of 50 MiB to 4 GiB", _saw),
    Kind("daily wave", "a day long, of 0.2 to 16 GiB, at any time of the day", _daily),
    Kind("random walk", "0.1 to 2 GiB (standard deviation) in the watch", _walk),
    Kind("steps", "1 to 8 steps of 0.1 to 2 GiB", _steps),
    Kind("warm-up", "exponential, 1 to 10 time constants, 0.5 to 16 GiB", _warm_up),
    Kind("warm-up, logarithmic", "of 0.1 to 2 GiB a factor of e", _logarithm),
    Kind("cache, full early", "fills in a line for 5 to 60% of the watch", lambda r, w: _cache(r, w, (0.05, 0.6))),
    Kind("cache, full late", "fills in a line for 60 to 100% of the watch", lambda r, w: _cache(r, w, (0.6, 1.0))),
    Kind("cache, not full", "fills in a line for longer than the watch", lambda r, w: _cache(r, w, (1.0, 3.0))),
    Kind("leak", "1.1 to 8 GiB in the watch, noise", _leak),
    Kind("leak under saw-teeth", "the same, under teeth of up to 4 GiB", _leak_under_saw),
)


def is_called(kind: Kind, window: float, interval: float, seed: int) -> bool:
    """Whether the rule calls a process of this kind a leak."""
    rng = random.Random(f"{kind.name} {window} {seed}")
    level = kind.make(rng, window)
    times = [at * interval for at in range(int(window / interval) + 1)]
    meta = CaseMeta(
        memforensics_version="0", command="watch", anchor=Anchor(monotonic_ns=0, wall_ns=0), root_pid=1, seed=seed
    )
    samples = tuple(
        Sample(pid=1, t_ns=int(t * NS_PER_S), rss_anon=max(0, round(level(t))), rss_file=0, rss_shmem=0) for t in times
    )
    case = Case(meta=meta, samples=samples)
    found = growth_of(case)
    return found is not None and sustained_growth(case, found, ()) is not None


def _share(task: tuple[int, float, float, int]) -> float:
    index, window, interval, count = task
    return sum(is_called(KINDS[index], window, interval, seed) for seed in range(count)) / count


def table(count: int) -> Iterator[str]:
    heads = " | ".join(duration_text(window) for window, _ in OBSERVATIONS)
    yield f"{count} processes a cell: how many are called `leak`."
    yield ""
    yield f"| kind | what | {heads} |"
    yield "|---|---|" + "---|" * len(OBSERVATIONS)
    with ProcessPoolExecutor(max_workers=2) as pool:
        tasks = [(index, window, interval, count) for index in range(len(KINDS)) for window, interval in OBSERVATIONS]
        shares = list(pool.map(_share, tasks))
    for index, kind in enumerate(KINDS):
        row = shares[index * len(OBSERVATIONS) : (index + 1) * len(OBSERVATIONS)]
        yield f"| {kind.name} | {kind.what} | {' | '.join(f'{share:.1%}' for share in row)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=300)
    parser.add_argument("--markdown", type=Path, help="write the table into this page")
    options = parser.parse_args()
    text = "\n".join(table(options.series))
    print(text)
    if options.markdown is not None:
        page = options.markdown.read_text()
        before, _, rest = page.partition(BEGIN)
        options.markdown.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
