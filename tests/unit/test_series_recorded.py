"""Real programs, recorded from their first second (tests/fixtures/series), judged at many lengths and places.

A line alone may say `growing` of what is still warming up or filling: it must never say `leak`, must come to rest on
what is healthy, and must see the leaks everywhere. Nothing here was used to set a threshold.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from memforensics.analysis.trend import fit_trend, verdict_of_trend
from memforensics.case.model import Anchor, CaseMeta, Sample, Target
from memforensics.case.model import Case as CaseOf
from memforensics.jobs.case.conclude import conclude_case
from memforensics.jobs.observe.tiered_samples import TieredSamples
from memforensics.units import KIB, NS_PER_S

SERIES = Path(__file__).parents[1] / "fixtures" / "series"
LEAKS = ("python-leak", "ucx-leak")
UNDER_SAW_TEETH = "saw-tooth-leak"
SETTLE_S = {"lru-fills": 545.0, "python-cycles": 90.0, "workers": 120.0}  # how long each fills or warms up by design
HEALTHY = tuple(sorted(path.stem for path in SERIES.glob("*.csv") if path.stem not in (*LEAKS, UNDER_SAW_TEETH)))
PREFIXES = (10, 20, 30, 60, 120, 240, 480)


@dataclass(frozen=True)
class Recorded:
    seconds: list[float]
    anon: list[int]  # RssAnon and RssShmem, bytes
    file: list[int]

    def case(self, count: int) -> CaseOf:
        """The first so many readings as a case, of a process that began with them."""
        meta = CaseMeta(
            memforensics_version="0", command="watch", anchor=Anchor(monotonic_ns=0, wall_ns=0), root_pid=1, seed=1
        )
        samples = tuple(
            Sample(pid=1, t_ns=int(t * NS_PER_S), rss_anon=anon, rss_file=mapped, rss_shmem=0)
            for t, anon, mapped in zip(self.seconds[:count], self.anon, self.file, strict=False)
        )
        return CaseOf(meta=meta, samples=samples, targets=(Target(pid=1, start_ticks=1, start_wall_ns=0),))


def recorded(name: str) -> Recorded:
    lines = (SERIES / f"{name}.csv").read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    assert {"# what", "# command", "# recorded", "# kernel", "# unit"} <= {line.partition(":")[0] for line in head}
    rows = [line.split(",") for line in lines[len(head) + 1 :]]
    return Recorded(
        [float(row[0]) for row in rows],
        [(int(row[1]) + int(row[3])) * KIB for row in rows],
        [int(row[2]) * KIB for row in rows],
    )


def words(series: Recorded, length: int, begin_s: float = 0.0) -> list[str]:
    """What windows of so many readings say, each a quarter later than the last."""
    first = next((i for i, t in enumerate(series.seconds) if t >= begin_s), len(series.seconds))
    starts = range(first, len(series.seconds) - length + 1, max(length // 4, 5))
    return [verdict_of_trend(fit_trend(series.seconds[i : i + length], series.anon[i : i + length])) for i in starts]


@pytest.mark.parametrize("name", LEAKS)
@pytest.mark.parametrize("length", [20, 30, 60, 120, 240, 480])
def test_a_real_leak_is_growing_in_every_window(name: str, length: int) -> None:
    assert set(words(recorded(name), length)) == {"growing"}


def test_a_leak_under_saw_teeth_is_detected_at_the_end() -> None:
    """100 MiB come and go every two seconds, and 1 MiB a second stays: a minute shows it; until then nothing is said
    of a bound that nobody can have seen."""
    series = recorded(UNDER_SAW_TEETH)
    assert "bounded" not in {word for length in (30, 40, 60, 80, 120) for word in words(series, length)}
    assert set(words(series, 120)) == {"growing"}


@pytest.mark.parametrize("name", [*LEAKS, UNDER_SAW_TEETH, *HEALTHY])
def test_no_prefix_is_called_a_leak(name: str) -> None:
    series = recorded(name)
    told = {count: conclude_case(series.case(count)).verdict for count in PREFIXES}
    assert "leak" not in told.values()
    if name in LEAKS:
        assert {told[count] for count in PREFIXES if count >= 20} == {"growing"}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_series_end_steady(name: str) -> None:
    """After the warm-up or filling that it has by design. Windows of two minutes; one in ten may still be a burst."""
    told = words(recorded(name), 120, SETTLE_S.get(name, 60.0)) or words(recorded(name), 40, SETTLE_S[name])
    assert told.count("growing") <= len(told) // 10, told


def test_page_cache_is_not_growth() -> None:
    """The scan brought 400 MiB of a mapped file in, in a line of three minutes; the process itself stood still."""
    series = recorded("file-scan")
    assert verdict_of_trend(fit_trend(series.seconds[:150], series.file[:150])) == "growing"
    assert conclude_case(series.case(150)).verdict == "steady"


@pytest.mark.parametrize("name", [*LEAKS, "batches", "jvm", "node", "torch-warm-up", "ucx-fixed", "workers"])
def test_a_thinned_series_has_the_same_verdict(name: str) -> None:
    series = recorded(name)
    line: TieredSamples[tuple[float, int]] = TieredSamples(48, seed=1)
    for point in zip(series.seconds, series.anon, strict=True):
        line.add(point)
    kept = list(line)
    assert len(kept) < len(series.seconds) / 2
    whole, thinned = (
        fit_trend(series.seconds, series.anon),
        fit_trend([t for t, _ in kept], [v for _, v in kept]),
    )
    assert (verdict_of_trend(whole) == "growing") == (verdict_of_trend(thinned) == "growing")
    if name in LEAKS:
        assert whole.rate is not None
        assert thinned.rate is not None
        assert thinned.rate.low <= whole.rate.estimate <= thinned.rate.high or thinned.rate.estimate == pytest.approx(
            whole.rate.estimate, rel=0.1
        )
