"""A leak that starts after a long watch is growing within three minutes."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest

from memforensics.case.model import Anchor, Loss, Sample, Target
from memforensics.case.views import WatchTick
from memforensics.jobs.observe.recorder import Record, new_meta
from memforensics.jobs.observe.tree import Event
from memforensics.jobs.watch.loop import recorder_for, watch_with
from memforensics.target import Process
from memforensics.units import GIB, MIB, NS_PER_S

Level = Callable[[float], float]


@dataclass
class Playback:
    """An observer of one process whose memory is a function of the time, on a clock of its own."""

    level: Level
    now_s: float
    pid: int = 1
    interval_s: float = 1.0
    events: list[Event] = field(default_factory=list)
    members: dict[int, Process] = field(default_factory=dict)
    root_left: str | None = None

    @property
    def clock(self) -> Callable[[], int]:
        return lambda: int(self.now_s * NS_PER_S)

    def losses(self) -> list[Loss]:
        return []

    def sample(self) -> Sample:
        return Sample(pid=1, t_ns=self.clock(), rss_anon=int(self.level(self.now_s)), rss_file=0, rss_shmem=0)

    def ticks(self, seconds: float | None) -> Iterator[list[Record]]:
        assert seconds is not None
        end = self.now_s + seconds
        while self.now_s < end:
            yield [self.sample()]
            self.now_s += self.interval_s


def leak_from(onset: float, rate_mib: float, seed: int) -> Level:
    """A warm-up of a minute, then a level with noise and garbage that is collected each 40 s; then a leak."""
    rng = random.Random(seed)
    return lambda t: (
        GIB
        + 300 * MIB * min(t / 60, 1.0)
        + MIB * (rng.gauss(0, 0.5) + 4 * (t % 40) / 40)
        + max(t - onset, 0.0) * rate_mib * MIB / 60
    )


def watched(level: Level, begin: float, end: float) -> Iterator[WatchTick]:
    """What a watch says from `begin` on that has seen all before it."""
    observer = Playback(level, 0.0)
    meta = replace(new_meta("watch", 1, seed=1), anchor=Anchor(monotonic_ns=0, wall_ns=0))
    with recorder_for(meta, None, clock=observer.clock) as recorder:
        recorder.put([Target(pid=1, start_ticks=1, start_wall_ns=0)])
        while observer.now_s < begin:
            recorder.put([observer.sample()])
            observer.now_s += observer.interval_s
        yield from watch_with(observer, recorder, seconds=end - begin)


@pytest.mark.parametrize(("minutes", "rate"), [(10, 20.0), (20, 200.0), (60, 20.0), (240, 200.0), (720, 20.0)])
def test_late_leak_is_growing_within_three_minutes(minutes: int, rate: float) -> None:
    onset = minutes * 60.0
    growing_s: list[float] = []
    for tick in watched(leak_from(onset, rate, seed=minutes), onset - 60, onset + 180):
        assert len(tick.case.samples) <= 1100
        if tick.judged and tick.diagnosis.verdict == "growing":
            growing_s.append(tick.t_ns / NS_PER_S - onset)
            assert growing_s[0] > 0
            growth = tick.diagnosis.growth
            assert growth is not None
            assert growth.rate is not None
            assert growth.trend.cut_seconds > onset - 60
    assert growing_s
    assert growing_s[0] <= 180
    assert tick.diagnosis.verdict == "growing"
    assert growth is not None
    assert growth.rate is not None
    assert growth.rate.low <= rate * MIB <= growth.rate.high or growth.rate.estimate == pytest.approx(
        rate * MIB, rel=0.15
    )


@pytest.mark.parametrize("minutes", [10, 120])
def test_same_series_without_a_leak_is_never_growing(minutes: int) -> None:
    end = minutes * 60.0
    words = {tick.diagnosis.verdict for tick in watched(leak_from(2 * end, 200, seed=minutes), end - 60, end + 180)}
    assert words <= {"steady", "bounded"}
