"""The governor of the overhead, against simulated targets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memforensics.probes.ebpf.loader.engine import RunStats
from memforensics.probes.ebpf.overhead import TOP_LEVEL, Governor, Reading, RunTimes, Times, cpu_ns
from memforensics.units import NS_PER_S, parse_share


class Simulated:
    """A process that uses a whole CPU, and maps one page so many times a second of it."""

    def __init__(self, share: float | None, account_ns: float, walk_ns: float, per_second: int) -> None:
        self.account_ns, self.walk_ns, self.per_second = account_ns, walk_ns, per_second
        self.level, self.run_ns, self.seconds = 0, 0.0, 0.0
        self.governor = Governor(share, self.apply)
        self.governor.start(self.reading())

    def apply(self, level: int) -> None:
        self.level = level

    def cost(self) -> float:
        """Of one second."""
        return self.per_second * (self.account_ns + self.walk_ns / (1 << self.level)) / NS_PER_S

    def reading(self) -> Reading:
        return Reading(int(self.run_ns), {1: int(self.seconds * NS_PER_S)})

    def run(self, readings: int, apart_s: float = 0.5) -> None:
        for _ in range(readings):
            if self.governor.declined:
                return
            self.run_ns += self.cost() * NS_PER_S * apart_s
            self.seconds += apart_s
            self.governor.update(self.reading())


COSTS = {
    "share": st.floats(0.001, 0.2),
    "account_ns": st.floats(1, 1000),
    "walk_ns": st.floats(10, 20_000),
    "per_second": st.integers(1, 300_000),
}


@given(**COSTS)
def test_the_bound_holds_or_the_trace_declines(
    share: float, account_ns: float, walk_ns: float, per_second: int
) -> None:
    target = Simulated(share, account_ns, walk_ns, per_second)
    least = per_second * (account_ns + walk_ns / (1 << TOP_LEVEL)) / NS_PER_S
    first = target.cost()
    target.run(5, 0.1)
    target.run(40)
    assert target.governor.declined == (least > share)
    if not target.governor.declined:
        target.run(200)
        assert target.governor.reached is not None
        assert target.governor.reached * target.seconds <= share * target.seconds + first * 0.1 + 1e-6
        assert target.cost() <= share


@given(**COSTS)
def test_without_a_bound_nothing_is_sampled(share: float, account_ns: float, walk_ns: float, per_second: int) -> None:
    target = Simulated(None, account_ns, walk_ns, per_second)
    target.run(10)
    assert target.level == 0
    assert not target.governor.is_reduced
    assert target.governor.reached == pytest.approx(target.cost(), abs=1e-6)
    assert list(target.governor.losses(True)) == []


def test_more_stacks_are_walked_when_the_cost_falls() -> None:
    target = Simulated(0.01, 10, 2000, 100_000)
    target.run(10)
    assert target.level > 3
    target.per_second = 10
    target.run(20)
    assert target.level == 0


def test_a_sleeping_target_changes_nothing() -> None:
    governor = Governor(0.01, lambda _: pytest.fail("nothing to decide"))
    governor.start(Reading(0, {1: 0}))
    for second in range(1, 20):
        governor.update(Reading(second * 1_000_000, {1: second * 10}))
    assert governor.reached is None


def test_a_process_counts_while_it_runs() -> None:
    governor = Governor(None, lambda _: None)
    governor.start(Reading(0, {1: 0}))
    governor.update(Reading(NS_PER_S // 100, {1: NS_PER_S, 2: 50 * NS_PER_S}))
    governor.update(Reading(3 * NS_PER_S // 100, {2: 51 * NS_PER_S}))
    assert governor.reached == pytest.approx(0.015)


def test_the_loss_of_a_declined_trace() -> None:
    target = Simulated(0.01, 1000, 2000, 100_000)
    target.run(30)
    ((what, reduce, count),) = target.governor.losses(True)
    assert "account alone" in what
    assert reduce.startswith("--overhead ")
    assert parse_share(reduce.removeprefix("--overhead ")) > target.cost()
    assert count == 1


def test_cpu_time_of_a_process() -> None:
    stat = "42 (a (b) c) S 1 42 42 0 -1 4194560 1 2 3 4 250 50 7 8 20 0 3 0 100 1000 10"
    assert cpu_ns(stat, 100) == 3 * NS_PER_S


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.5 %", 0.005), (".5%", 0.005), ("100%", 1.0)])
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "1", "%", "-1%", "0%", "1.%", "1%%", "one%"])
def test_text_that_is_no_share(text: str) -> None:
    with pytest.raises(ValueError, match="share"):
        parse_share(text)


# --- the run time of the target and of the host


def split(*readings: RunStats) -> Times:
    times = RunTimes()
    for reading in readings:
        times.add(reading)
    return times.times


@given(
    others=st.integers(0, 10**7),
    own=st.integers(0, 10**6),
    exit_ns=st.integers(20, 200),
    work_ns=st.integers(50, 5000),
    pieces=st.integers(1, 5),
)
def test_run_time_is_divided_between_the_target_and_the_host(
    others: int, own: int, exit_ns: int, work_ns: int, pieces: int
) -> None:
    """Each run takes `exit_ns` before the check of the process; runs for the target take `work_ns` more."""
    readings = [
        RunStats(n * (others + own), n * (exit_ns * (others + own) + work_ns * own), 0, n * own, n * work_ns * own)
        for n in range(pieces + 1)
    ]
    times = split(*readings)
    assert times.target_runs == pieces * own
    assert times.host_runs == pieces * others
    assert abs(times.target_ns - pieces * own * (exit_ns + work_ns)) <= pieces
    assert abs(times.host_ns - pieces * others * exit_ns) <= pieces


def test_an_idle_target_does_not_pay_for_a_busy_host() -> None:
    times = split(RunStats(0, 0, 0), RunStats(7_700_000, 616_000_000, 0, 1_817, 3_634_000))
    assert times.target_ns < 4_000_000
    assert times.host_runs == 7_698_183


def test_run_time_is_never_negative() -> None:
    times = split(RunStats(0, 0, 0), RunStats(100, 5_000, 0, 300, 90_000))
    assert times == Times(5_000, 100, 0, 0)
