"""Error rates of the trend: shapes of seeded synthetic series of known kinds.

    python benchmarks/calibrate.py [--series 2000] [--markdown docs/calibration.md]

Healthy kinds must not be `linear` (a false upward trend); growing kinds must. The unit tests run the same kinds with
fewer series.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import exp, log, pi, sin
from pathlib import Path

from memforensics.analysis.line_statistics import MIN_RISE
from memforensics.analysis.trend import fit_trend, minimum_rate, verdict_of_trend
from memforensics.units import KIB, MIB, duration_text

Series = tuple[list[float], list[float]]
BASE = 300 * MIB


@dataclass(frozen=True, slots=True)
class Kind:
    """A family of series. Each series has a random level function, sampled with jitter and missing samples."""

    name: str
    what: str
    grows: bool
    make: Callable[[random.Random, float], Callable[[float], float]]
    windows: tuple[tuple[float, float], ...] = ((10, 0.5), (20, 0.5), (60, 0.5), (60, 1), (600, 1), (7200, 10))


def _chunks(rng: random.Random, mib_a_minute: float) -> Callable[[float], float]:
    """A rising line as RSS shows it: in jumps of one chunk size, with a phase."""
    chunk = rng.choice((16 * KIB, 144 * KIB, 512 * KIB, MIB))
    rate, phase = mib_a_minute * MIB / 60.0, rng.random() * chunk
    return lambda t: BASE + (rate * t + phase) // chunk * chunk


def _white(rng: random.Random, sd: float) -> Callable[[float], float]:
    return lambda t: rng.gauss(0.0, sd)


def _wobble(rng: random.Random, sd: float, memory_s: float) -> Callable[[float], float]:
    """A wobble that forgets itself in `memory_s` seconds (Ornstein-Uhlenbeck)."""
    state = {"t": 0.0, "v": rng.gauss(0.0, sd)}

    def at(t: float) -> float:
        keep = exp(-max(t - state["t"], 0.0) / memory_s)
        state["v"] = state["v"] * keep + rng.gauss(0.0, sd) * (1.0 - keep * keep) ** 0.5
        state["t"] = t
        return state["v"]

    return at


def _saw(rng: random.Random, window: float) -> Callable[[float], float]:
    period = rng.uniform(window / 30, window / 2.2)
    height, phase = rng.uniform(2, 200) * MIB, rng.random() * period
    return lambda t: height * ((t + phase) % period) / period


def _bursts(rng: random.Random, window: float) -> Callable[[float], float]:
    spans: list[tuple[float, float, float]] = []
    for _ in range(rng.randint(3, 25)):
        start = rng.uniform(-0.1, 1.0) * window
        spans.append((start, start + rng.expovariate(1 / (window / 25)), rng.uniform(1, 60) * MIB))
    return lambda t: sum(height for start, end, height in spans if start <= t < end)


def _both(*parts: Callable[[float], float]) -> Callable[[float], float]:
    return lambda t: sum(part(t) for part in parts)


def _warm_up(rng: random.Random, window: float, constants: tuple[float, float]) -> Callable[[float], float]:
    tau, height = window / rng.uniform(*constants), rng.uniform(5, 2000) * MIB
    return lambda t: BASE + height * (1.0 - exp(-t / tau))


def _logistic(rng: random.Random, window: float) -> Callable[[float], float]:
    """A warm-up that starts slowly: an S, over by 60% of the window."""
    middle, height = rng.uniform(0.1, 0.35) * window, rng.uniform(5, 2000) * MIB
    tau = rng.uniform(0.02, 0.05) * window
    return lambda t: BASE + height / (1.0 + exp(-min((t - middle) / tau, 500.0)))


def _full_cache(rng: random.Random, window: float) -> Callable[[float], float]:
    """A cache that fills in a line and is full after 5 to 45% of the window; then its entries are exchanged."""
    end, height, churn = rng.uniform(0.05, 0.45) * window, rng.uniform(20, 2000) * MIB, rng.uniform(0.001, 0.02)
    return lambda t: BASE + height * (min(t / end, 1.0) - churn * rng.random())


def _steps(rng: random.Random, window: float, count: int) -> Callable[[float], float]:
    jumps = [(rng.uniform(0.02, 0.98) * window, rng.uniform(1, 400) * MIB) for _ in range(count)]
    return lambda t: BASE + sum(height for at, height in jumps if t >= at)


def _load(rng: random.Random, window: float) -> Callable[[float], float]:
    """A model that is read into memory at a constant speed, then stays."""
    end, height = rng.uniform(0.05, 0.45) * window, rng.uniform(50, 4000) * MIB
    return lambda t: BASE + height * min(t / end, 1.0)


def _sine(rng: random.Random, window: float) -> Callable[[float], float]:
    period, height, phase = window / rng.uniform(3, 20), rng.uniform(5, 200) * MIB, rng.random() * 2 * pi
    return lambda t: height * (1 + sin(2 * pi * t / period + phase))


def _autoregression(rng: random.Random, keep: tuple[float, float]) -> Callable[[float], float]:
    """Noise each of whose readings keeps this share of the last one."""
    share, sd = rng.uniform(*keep), rng.uniform(0.5, 20) * MIB
    state = {"v": rng.gauss(0.0, sd)}

    def at(_: float) -> float:
        state["v"] = share * state["v"] + rng.gauss(0.0, sd) * (1.0 - share * share) ** 0.5
        return state["v"]

    return at


def _walk(rng: random.Random) -> Callable[[float], float]:
    sd, state = rng.uniform(0.1, 5) * MIB, {"v": 0.0}

    def at(_: float) -> float:
        state["v"] += rng.gauss(0.0, sd)
        return state["v"]

    return at


def _logarithm(rng: random.Random, window: float) -> Callable[[float], float]:
    """A warm-up that takes ten times as long for each further part: it never quite ends."""
    tau, height = window / rng.uniform(10, 1000), rng.uniform(5, 200) * MIB
    return lambda t: BASE + height * log(1.0 + t / tau)


def _long_load(rng: random.Random, window: float) -> Callable[[float], float]:
    end, height = rng.uniform(0.5, 0.8) * window, rng.uniform(50, 4000) * MIB
    return lambda t: BASE + height * min(t / end, 1.0)


def _one_tooth(rng: random.Random, window: float) -> Callable[[float], float]:
    period, height = rng.uniform(0.6, 1.5) * window, rng.uniform(10, 400) * MIB
    phase = rng.random() * period
    return lambda t: BASE + height * ((t + phase) % period) / period


def _workers(rng: random.Random, window: float) -> Callable[[float], float]:
    """Workers that each grow and are replaced, each at a time of its own."""
    teeth = []
    for _ in range(rng.randint(2, 8)):
        period = rng.uniform(0.2, 0.8) * window
        teeth.append((period, rng.uniform(10, 100) * MIB, rng.random() * period))
    return lambda t: BASE + sum(height * ((t + phase) % period) / period for period, height, phase in teeth)


def _late(rng: random.Random, window: float) -> Callable[[float], float]:
    """Nothing, and from 30 to 85% of the window on (12 s before its end at the latest) a line."""
    onset = min(rng.uniform(0.3, 0.85) * window, window - 12.0)
    line = _chunks(rng, rng.uniform(40, 400))
    return lambda t: line(max(t - onset, 0.0))


def _faster(rng: random.Random, window: float) -> Callable[[float], float]:
    """A leak whose rate doubles 2 to 8 times in the window, or grows evenly from nothing."""
    rise = rng.uniform(40, 400) * MIB * max(window, 60) / 60
    if rng.random() < 0.5:
        return lambda t: BASE + rise * (t / window) ** 2
    doublings = rng.uniform(2, 8)
    return lambda t: BASE + rise * (2.0 ** (doublings * t / window) - 1.0) / (2.0**doublings - 1.0)


def _stairs(rng: random.Random) -> Callable[[float], float]:
    """A block each 5 to 10 s."""
    block, each = rng.uniform(1, 64) * MIB, rng.uniform(5, 10)
    phase = rng.random() * each
    return lambda t: BASE + (t + phase) // each * block


def _two_phases(rng: random.Random, window: float, ratio: tuple[float, float]) -> Callable[[float], float]:
    """Two slopes, the second so many times the first."""
    change, first = rng.uniform(0.3, 0.7) * window, rng.uniform(40, 400) * MIB / 60
    second = first * rng.uniform(*ratio)
    return lambda t: BASE + first * min(t, change) + second * max(t - change, 0.0)


LONG = ((60, 0.5), (60, 1), (600, 1), (7200, 10))
WALKS = ((30, 0.5), (60, 0.5), (300, 1), (600, 1))
KINDS: tuple[Kind, ...] = (
    Kind(
        "flat, quiet", "a constant, some pages of wobble", False, lambda r, w: _both(lambda t: BASE, _white(r, 8 * KIB))
    ),
    Kind(
        "flat, noise",
        "white noise, 0.1 to 20 MiB",
        False,
        lambda r, w: _both(lambda t: BASE, _white(r, r.uniform(0.1, 20) * MIB)),
    ),
    Kind(
        "flat, wobble",
        "noise with a memory of up to a 20th of the window",
        False,
        lambda r, w: _both(lambda t: BASE, _wobble(r, r.uniform(0.5, 20) * MIB, r.uniform(0.01, 0.05) * w)),
    ),
    Kind(
        "slow drift",
        "rises by a third of what matters",
        False,
        lambda r, w: _both(_chunks(r, 0.33 * min(1.0, 600 / w)), _white(r, 16 * KIB)),
    ),
    Kind(
        "saw-teeth",
        "2 to 30 teeth, noise",
        False,
        lambda r, w: _both(lambda t: BASE, _saw(r, w), _white(r, r.uniform(0.01, 2) * MIB)),
    ),
    Kind(
        "waves",
        "3 to 20 waves, noise",
        False,
        lambda r, w: _both(lambda t: BASE, _sine(r, w), _white(r, r.uniform(0.01, 2) * MIB)),
    ),
    Kind(
        "bursts",
        "3 to 25 bursts of 1 to 60 MiB",
        False,
        lambda r, w: _both(lambda t: BASE, _bursts(r, w), _white(r, 50 * KIB)),
    ),
    Kind(
        "warm-up",
        "exponential, 3 to 10 time constants, noise",
        False,
        lambda r, w: _both(_warm_up(r, w, (3, 10)), _white(r, r.uniform(0.01, 1) * MIB)),
    ),
    Kind(
        "load, then flat",
        "straight up for 5 to 45% of the window, then flat",
        False,
        lambda r, w: _both(_load(r, w), _white(r, r.uniform(0.01, 1) * MIB)),
    ),
    Kind(
        "warm-up, S-shaped",
        "logistic, over by 60% of the window, noise",
        False,
        lambda r, w: _both(_logistic(r, w), _white(r, r.uniform(0.01, 1) * MIB)),
    ),
    Kind(
        "cache, then full",
        "fills in a line for 5 to 45% of the window, then 0.1 to 2% of churn",
        False,
        lambda r, w: _full_cache(r, w),
    ),
    Kind(
        "one step",
        "1 to 400 MiB at any time",
        False,
        lambda r, w: _both(_steps(r, w, 1), _white(r, r.uniform(0.01, 1) * MIB)),
    ),
    Kind(
        "two steps",
        "1 to 400 MiB each",
        False,
        lambda r, w: _both(_steps(r, w, 2), _white(r, r.uniform(0.01, 1) * MIB)),
    ),
    Kind(
        "falling",
        "shrinks by 5 to 100 MiB/min",
        False,
        lambda r, w: (lambda rate: lambda t: BASE * 100 - rate * t)(r.uniform(5, 100) * MIB / 60),
    ),
    Kind(
        "AR(0.9 to 0.99)",
        "each reading keeps 90 to 99% of the last one's noise",
        False,
        lambda r, w: _both(lambda t: 4 * BASE, _autoregression(r, (0.9, 0.99))),
        WALKS,
    ),
    Kind(
        "random walk",
        "each reading adds noise to the last",
        False,
        lambda r, w: _both(lambda t: 9 * BASE, _walk(r)),
        WALKS,
    ),
    Kind(
        "warm-up, logarithmic",
        "log(1 + t), 10 to 1000 time constants, noise: it slows down and never ends",
        False,
        lambda r, w: _both(_logarithm(r, w), _white(r, r.uniform(0.01, 1) * MIB)),
        LONG,
    ),
    Kind(
        "long load, then flat",
        "straight up for 50 to 80% of the window, then flat",
        False,
        lambda r, w: _both(_long_load(r, w), _white(r, r.uniform(0.01, 1) * MIB)),
        LONG,
    ),
    Kind(
        "three to six steps",
        "a cache that grows by 1 to 400 MiB at any time",
        False,
        lambda r, w: _both(_steps(r, w, r.randint(3, 6)), _white(r, r.uniform(0.01, 1) * MIB)),
        WALKS,
    ),
    Kind(
        "one tooth",
        "a saw-tooth of 0.6 to 1.5 times the window",
        False,
        lambda r, w: _both(_one_tooth(r, w), _white(r, r.uniform(0.01, 2) * MIB)),
        WALKS,
    ),
    Kind(
        "recycled workers",
        "2 to 8 saw-teeth of 0.2 to 0.8 times the window",
        False,
        lambda r, w: _both(_workers(r, w), _white(r, r.uniform(0.01, 1) * MIB)),
        WALKS,
    ),
    Kind(
        "leak, quiet", "10 MiB/min in chunks of 16 KiB to 1 MiB", True, lambda r, w: _chunks(r, 10), ((20, 0.5), *LONG)
    ),
    Kind(
        "leak, noise",
        "40 to 400 MiB/min, 1 to 5 MiB of noise",
        True,
        lambda r, w: _both(_chunks(r, r.uniform(40, 400)), _white(r, r.uniform(1, 5) * MIB)),
        LONG,
    ),
    Kind(
        "leak, wobble",
        "40 to 400 MiB/min, wobble of 1 to 5 MiB",
        True,
        lambda r, w: _both(_chunks(r, r.uniform(40, 400)), _wobble(r, r.uniform(1, 5) * MIB, 1.5)),
        LONG,
    ),
    Kind(
        "leak, saw-teeth",
        "60 to 400 MiB/min under teeth of 5 to 50 MiB, 4 to 30 of them",
        True,
        lambda r, w: _both(
            _chunks(r, r.uniform(60, 400)),
            (lambda p, h, f: lambda t: h * ((t + f) % p) / p)(
                min(w, 120) / r.uniform(4, 30), r.uniform(5, 50) * MIB, r.random() * w
            ),
        ),
        LONG,
    ),
    Kind(
        "leak, bursts",
        "60 to 400 MiB/min under bursts",
        True,
        lambda r, w: _both(_chunks(r, r.uniform(60, 400)), _bursts(r, w)),
        LONG,
    ),
    Kind(
        "leak after warm-up",
        "40 to 400 MiB/min after a warm-up in the first fifth",
        True,
        lambda r, w: _both(
            _chunks(r, r.uniform(40, 400)),
            (lambda tau, h: lambda t: h * (1 - exp(-t / tau)))(w / r.uniform(20, 60), r.uniform(20, 500) * MIB),
        ),
        LONG,
    ),
    Kind(
        "leak and a step",
        "40 to 400 MiB/min, one step of 10 to 200 MiB",
        True,
        lambda r, w: _both(
            _chunks(r, r.uniform(40, 400)),
            (lambda at, h: lambda t: h if t >= at else 0.0)(r.uniform(0.1, 0.9) * w, r.uniform(10, 200) * MIB),
        ),
        LONG,
    ),
    Kind(
        "leak, late",
        "from 30 to 85% of the window on 40 to 400 MiB/min; little noise",
        True,
        lambda r, w: _both(_late(r, w), _white(r, r.uniform(0.01, 0.3) * MIB)),
        LONG,
    ),
    Kind(
        "leak, late, after a warm-up",
        "the same, and a warm-up in the first tenth",
        True,
        lambda r, w: _both(
            _late(r, w),
            (lambda tau, h: lambda t: h * (1 - exp(-t / tau)))(w / r.uniform(40, 90), r.uniform(20, 500) * MIB),
            _white(r, r.uniform(0.01, 0.3) * MIB),
        ),
        LONG,
    ),
    Kind(
        "leak, accelerating",
        "its rate rises evenly from 0, or doubles 2 to 8 times",
        True,
        lambda r, w: _both(_faster(r, w), _white(r, r.uniform(0.01, 0.3) * MIB)),
        LONG,
    ),
    Kind(
        "leak, stairs",
        "a block of 1 to 64 MiB each 5 to 10 s",
        True,
        lambda r, w: _both(_stairs(r), _white(r, r.uniform(0.01, 0.3) * MIB)),
        LONG,
    ),
    Kind(
        "leak, slow then fast",
        "40 to 400 MiB/min, 2 to 10 times as much from 30 to 70% of the window on",
        True,
        lambda r, w: _both(_two_phases(r, w, (2, 10)), _white(r, r.uniform(0.01, 0.3) * MIB)),
        LONG,
    ),
    Kind(
        "leak, fast then slow",
        "40 to 400 MiB/min, a tenth to a half of it from 30 to 70% of the window on",
        True,
        lambda r, w: _both(_two_phases(r, w, (0.1, 0.5)), _white(r, r.uniform(0.01, 0.3) * MIB)),
        LONG,
    ),
)


def draw(kind: Kind, seed: int) -> Series:
    """One series of a kind: jittered times, one tick in fifty lost, sometimes a gap."""
    rng = random.Random(f"{kind.name}/{seed}")
    window, interval = kind.windows[seed % len(kind.windows)]
    level = kind.make(rng, window)
    gap = rng.uniform(0.2, 0.8) * window if rng.random() < 0.1 else None
    times, values = [], []
    t = 0.0
    while t <= window:
        lost = rng.random() < 0.02 or (gap is not None and gap <= t < gap + window / 10)
        value = level(t)
        if not lost:
            times.append(t)
            values.append(max(value, 0.0))
        t += interval * rng.uniform(0.95, 1.1)
    return times, values


def shapes(kind: Kind, count: int) -> Counter[str]:
    """The shapes of `count` series of a kind."""
    return Counter(fit_trend(*draw(kind, seed)).shape for seed in range(count))


def _row(task: tuple[int, int]) -> tuple[int, Counter[str]]:
    index, count = task
    return index, shapes(KINDS[index], count)


def table(count: int) -> Iterator[str]:
    yield "| kind | what | called growing | `ci` fails (exit 4) | other answers |"
    yield "|---|---|---|---|---|"
    with ProcessPoolExecutor() as pool:
        for index, found in pool.map(_row, [(i, count) for i in range(len(KINDS))]):
            kind = KINDS[index]
            others = ", ".join(f"{shape} {n / count:.1%}" for shape, n in found.most_common() if shape != "linear")
            name = f"**{kind.name}**" if kind.grows else kind.name
            fails = sum(found[shape] for shape in ("linear", "irregular", "too-short")) / count
            yield f"| {name} | {kind.what} | {found['linear'] / count:.1%} | {fails:.1%} | {others} |"


# --- detection by effect size and observation time ----------------------------------------------------------

EFFECTS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # the rise in the window over the standard deviation of the noise
LENGTHS = ((10.0, 0.5), (20.0, 0.5), (60.0, 1.0), (600.0, 1.0), (7200.0, 10.0))


def leak(effect: float, window: float, interval: float, seed: int) -> Series:
    """A straight leak under white noise. Its rate is always above the minimum rate (twice at an effect size of 0.1), so
    a missed leak is missed because of the noise."""
    rng = random.Random(f"{effect}/{window}/{seed}")
    noise = 20.0 * max(MIN_RISE, minimum_rate(BASE, window) * window / 60.0)
    times = [i * interval * rng.uniform(0.98, 1.02) for i in range(int(window / interval) + 1)]
    times.sort()
    return times, [10 * BASE + effect * noise * t / window + rng.gauss(0.0, noise) for t in times]


def _detected(task: tuple[float, float, float, int]) -> float:
    effect, window, interval, count = task
    return sum(fit_trend(*leak(effect, window, interval, seed)).shape == "linear" for seed in range(count)) / count


def detection(count: int) -> Iterator[str]:
    yield "| rise / noise | " + " | ".join(f"{duration_text(window)}" for window, _ in LENGTHS) + " |"
    yield "|---|" + "---|" * len(LENGTHS)
    tasks = [(effect, window, interval, count) for effect in EFFECTS for window, interval in LENGTHS]
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(_detected, tasks))
    for row, effect in enumerate(EFFECTS):
        cells = found[row * len(LENGTHS) : (row + 1) * len(LENGTHS)]
        yield f"| {effect:g} | " + " | ".join(f"{share:.0%}" for share in cells) + " |"


# --- coverage of the interval, by autocorrelation and observation time -----------------------------------------

KEEPS = (0.0, 0.5, 0.9, 0.95, 0.99)  # how much of the last reading's noise the next one keeps, at 0.5 s
LOOKS = (10.0, 20.0, 30.0, 60.0, 300.0, 600.0)


def noisy_line(keep: float, window: float, seed: int) -> Series:
    """100 MiB/min under an autoregression of 5 MiB, read each 0.5 s."""
    rng = random.Random(f"{keep}/{window}/{seed}")
    noise, times, values = rng.gauss(0.0, 5.0), [], []
    for i in range(int(window / 0.5) + 1):
        noise = keep * noise + rng.gauss(0.0, 5.0) * (1.0 - keep * keep) ** 0.5
        times.append(0.5 * i)
        values.append(10 * BASE + MIB * (100 * 0.5 * i / 60 + noise))
    return times, values


def covered(keep: float, window: float, count: int) -> tuple[float, float]:
    """The share of series whose 95% interval contains the true rate, and its median half width in MiB a minute."""
    held, widths = 0, []
    for seed in range(count):
        rate = fit_trend(*noisy_line(keep, window, seed)).rate
        assert rate is not None
        held += rate.low <= 100 * MIB <= rate.high
        widths.append((rate.high - rate.low) / 2 / MIB)
    return held / count, sorted(widths)[count // 2]


def _covered(task: tuple[float, float, int]) -> tuple[float, float]:
    return covered(*task)


def coverage(count: int) -> Iterator[str]:
    yield "| noise | " + " | ".join(duration_text(window) for window in LOOKS) + " |"
    yield "|---|" + "---|" * len(LOOKS)
    tasks = [(keep, window, count) for keep in KEEPS for window in LOOKS]
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(_covered, tasks))
    for row, keep in enumerate(KEEPS):
        cells = found[row * len(LOOKS) : (row + 1) * len(LOOKS)]
        name = f"AR({keep:g})" if keep else "white"
        yield f"| {name} | " + " | ".join(f"{share:.0%} (±{width:.0f})" for share, width in cells) + " |"


def _between(page: str, name: str, body: str) -> str:
    """The page with the text between its markers replaced."""
    head, begin, rest = page.partition(f"<!-- {name} -->\n")
    _, end, tail = rest.partition("<!-- end -->")
    return f"{head}{begin}{body}\n{end}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=2000, help="series a kind")
    parser.add_argument("--markdown", type=Path, help="replace the table between the markers of this page")
    parser.add_argument("--show", metavar="KIND", help="print the series of this kind with a wrong verdict")
    parser.add_argument(
        "--detection-only", action="store_true", help="only the tables by effect and length, and of the interval"
    )
    options = parser.parse_args()
    if options.show:
        for kind in (k for k in KINDS if k.name == options.show):
            for seed in range(options.series):
                times, values = draw(kind, seed)
                trend = fit_trend(times, values)
                if (verdict_of_trend(trend) == "growing") != kind.grows:
                    print(seed, kind.windows[seed % len(kind.windows)], trend)
        return
    began = time.monotonic()
    count = max(options.series // 10, 20)
    found = list(detection(count))
    print("\n".join(found), flush=True)
    held = list(coverage(options.series))
    print("\n".join(held), flush=True)
    lines = [] if options.detection_only else list(table(options.series))
    print("\n".join(lines))
    print(f"{options.series} series a kind, {time.monotonic() - began:.0f} s", file=sys.stderr)
    if options.markdown:
        page = options.markdown.read_text()
        page = _between(page, "detection", f"{count} series a cell.\n\n" + "\n".join(found))
        page = _between(page, "coverage", f"{options.series} series a cell.\n\n" + "\n".join(held))
        if lines:
            page = _between(page, "table", f"{options.series} series a kind.\n\n" + "\n".join(lines))
        options.markdown.write_text(page)


if __name__ == "__main__":
    main()
