"""No report contradicts itself: recorded cases and series, constructed cases, and generated ones."""

import gzip
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sin
from pathlib import Path
from typing import Any

import pytest
from consistency import contradictions
from fixtures import constructed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memforensics.case.model import (
    AllocationSite,
    Anchor,
    Case,
    CaseMeta,
    Diagnosis,
    EvidenceItem,
    Frame,
    LayerRow,
    Mapping,
    OwnerMark,
    Rate,
    Rollup,
    Sample,
    SitePoint,
    Snapshot,
    Stack,
    Target,
    TraceSummary,
)
from memforensics.jobs.case.conclude import conclude_case, load_diagnosis
from memforensics.units import KIB, MIB, NS_PER_S

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
RECORDED = sorted(path.name for path in (FIXTURES / "recorded").glob("*.case.gz"))
EXAMPLES = 40  # 500 others were tried with another seed
SERIES = sorted(path.stem for path in (FIXTURES / "series").glob("*.csv"))


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_cases(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.case"
    path.write_bytes(gzip.decompress((FIXTURES / "recorded" / name).read_bytes()))
    assert contradictions(*load_diagnosis(path)) == []


@pytest.mark.parametrize("name", SERIES)
def test_recorded_series(name: str) -> None:
    rows = [line.split(",") for line in (FIXTURES / "series" / f"{name}.csv").read_text().splitlines()]
    rows = [row for row in rows if row[0][:1].isdigit()]
    samples = tuple(
        Sample(
            pid=7,
            t_ns=int(float(row[0]) * NS_PER_S),
            rss_anon=int(row[1]) * KIB,
            rss_file=int(row[2]) * KIB,
            rss_shmem=int(row[3]) * KIB,
        )
        for row in rows
    )
    for count in (5, 40, 200):
        case = Case(meta=META, samples=samples[:count], targets=(Target(pid=7, start_ticks=1, start_wall_ns=0),))
        assert contradictions(case, conclude_case(case)) == []


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"samples": ()},
        {"sites": ()},
        {"sites": (), "traces": ()},
        {"hooks": (), "modules": ()},
        {"snapshots": (constructed.snapshot(), constructed.snapshot(constructed.BASE + 9 * NS_PER_S))},
        {"targets": (replace(constructed.target(), exited_ns=constructed.BASE, left_how="it exited"),)},
    ],
    ids=["whole", "no-samples", "no-sites", "untraced", "no-hooks", "snapshots", "ended"],
)
def test_constructed_cases(more: dict[str, Any]) -> None:
    case = constructed.case(**more)
    assert contradictions(case, conclude_case(case)) == []


# --- generated ------------------------------------------------------------------------------------------------------

META = CaseMeta(
    memforensics_version="0", command="diagnose", anchor=Anchor(monotonic_ns=0, wall_ns=0), root_pid=7, seed=1
)
Level = Callable[[float], float]  # share of the time -> share of the full change
SHAPES: dict[str, Level] = {
    "flat": lambda _: 0.0,
    "line": lambda x: x,
    "late": lambda x: max(0.0, x - 0.5) * 2,
    "very late": lambda x: max(0.0, x - 0.75) * 4,
    "early": lambda x: min(x * 3, 1.0),
    "step": lambda x: float(x > 0.5),
    "steps": lambda x: (x * 4 // 1) / 4,
    "warm-up": lambda x: 1.0 - 2.718 ** (-4 * x),
    "saw-teeth": lambda x: (x * 5) % 1.0,
    "leaking saw-teeth": lambda x: 0.5 * x + 0.5 * ((x * 9) % 1.0),
    "wave": lambda x: 0.5 + 0.5 * sin(20 * x),
    "falling": lambda x: -x,
}
KINDS = ("heap", "anonymous", "arena", "stack", "file")


@dataclass(frozen=True)
class Part:
    """One mapping of one process, of which the change is `change_mib` in all."""

    kind: str
    shape: str
    change_mib: int
    traced: bool
    replaces: bool  # as much from before the trace is freed: traced growth without growth

    def bytes_at(self, x: float) -> int:
        return 0 if self.replaces else round(SHAPES[self.shape](x) * self.change_mib * MIB)

    def traced_at(self, x: float) -> int:
        return max(0, round(SHAPES[self.shape](x) * self.change_mib * MIB))


PARTS = st.builds(
    Part,
    kind=st.sampled_from(KINDS),
    shape=st.sampled_from(sorted(SHAPES)),
    change_mib=st.sampled_from([1, 3, 20, 120]),
    traced=st.booleans(),
    replaces=st.integers(0, 5).map(lambda n: n == 0),
)


def generated(processes: list[list[Part]], seconds: int, noise_mib: float, snapshots: int, ends: bool) -> Case:
    rng = random.Random(len(processes) * seconds)
    samples, taken, sites, traces, targets = [], [], [], [], []
    for pid, parts in enumerate(processes, 7):
        for tick in range(2 * seconds + 1):
            x = tick / (2 * seconds)
            anon = 400 * MIB + sum(part.bytes_at(x) for part in parts if part.kind != "file")
            file = 300 * MIB + sum(part.bytes_at(x) for part in parts if part.kind == "file")
            anon += round(rng.gauss(0.0, noise_mib) * MIB)
            samples.append(
                Sample(pid=pid, t_ns=tick * NS_PER_S // 2, rss_anon=anon, rss_file=file, rss_shmem=0, swap=0)
            )
        for at in range(snapshots):
            x = at / max(snapshots - 1, 1)
            taken.append(snapshot_of(pid, parts, x, round(x * seconds * NS_PER_S)))
        traced = [part for part in parts if part.traced and part.kind != "file"]
        sites += [site_of(pid, number, part, seconds) for number, part in enumerate(traced, 1)]
        if traced:
            rss = sum(part.bytes_at(1.0) for part in parts)
            summary = TraceSummary(
                pid=pid, engine="bcc", began_ns=0, ended_ns=seconds * NS_PER_S, events=9, outstanding_bytes=9
            )
            traces.append(replace(summary, rss_growth_bytes=rss))
        left = "it exited" if ends else None
        targets.append(Target(pid=pid, start_ticks=1, start_wall_ns=0, cmdline=("serve",), left_how=left))
    return Case(
        meta=META,
        targets=tuple(targets),
        samples=tuple(sorted(samples, key=lambda sample: sample.t_ns)),
        snapshots=tuple(taken),
        sites=tuple(sites),
        traces=tuple(traces),
    )


def snapshot_of(pid: int, parts: list[Part], x: float, t_ns: int) -> Snapshot:
    mappings, marks = [], []
    for number, part in enumerate(parts):
        start, size = (0x7F00 + 16 * number) << 32, 200 * MIB + part.bytes_at(x)
        path = {"heap": "[heap]", "file": "/srv/weights.bin"}.get(part.kind, "")
        anonymous = 0 if part.kind == "file" else size
        mappings.append(Mapping(start, start + size, "rw-p", 0, "00:00", 0, path, rss=size, anonymous=anonymous))
        kind = {"arena": "glibc-arena", "stack": "thread-stack", "heap": "heap"}.get(part.kind)
        if kind:
            marks.append(OwnerMark(start=start, end=start + size, kind=kind))
    total = sum(m.anonymous or 0 for m in mappings)
    rollup = Rollup(rss_anon=total, rss_file=sum(m.rss or 0 for m in mappings) - total, rss_shmem=0)
    return Snapshot(pid=pid, t_ns=t_ns, reader="smaps", mappings=tuple(mappings), rollup=rollup, marks=tuple(marks))


def site_of(pid: int, number: int, part: Part, seconds: int) -> AllocationSite:
    libc = "/usr/lib/x86_64-linux-gnu/libc.so.6"
    call = {"heap": ("brk", "brk"), "arena": ("new_heap", "mmap"), "stack": ("allocate_stack", "mmap")}
    function, kind = call.get(part.kind, ("mmap", "mmap"))
    frames = (
        Frame(kind="native", function=function, module=libc),
        Frame(kind="native", function="keep", module="/srv/libkeep.so"),
        Frame(kind="python", function="request", file="/srv/app.py", line=30 + number),
    )
    timeline = tuple(
        SitePoint(t_ns=t * NS_PER_S, outstanding_bytes=part.traced_at(t / seconds), outstanding_count=t + 1)
        for t in range(seconds + 1)
    )
    left = max(part.traced_at(1.0), 1)
    return AllocationSite(
        pid=pid,
        site_id=number,
        kind=kind,
        stack=Stack(frames=frames),
        outstanding_bytes=left,
        outstanding_count=seconds + 1,
        allocated_bytes=left,
        allocated_count=seconds + 1,
        freed_bytes=0,
        freed_count=0,
        first_ns=0,
        last_ns=seconds * NS_PER_S,
        timeline=timeline,
    )


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    processes=st.lists(st.lists(PARTS, min_size=1, max_size=4), min_size=1, max_size=2),
    seconds=st.sampled_from([3, 9, 18]),
    noise_mib=st.sampled_from([0.0, 0.1, 2.0]),
    snapshots=st.sampled_from([0, 1, 2, 6]),
    ends=st.integers(0, 7).map(lambda n: n == 0),
)
def test_generated_cases(
    processes: list[list[Part]], seconds: int, noise_mib: float, snapshots: int, ends: bool
) -> None:
    case = generated(processes, seconds, noise_mib, snapshots, ends)
    assert contradictions(case, conclude_case(case)) == []


# --- the check itself -------------------------------------------------------------------------------------------------


def of(parts: list[Part], seconds: int = 40) -> tuple[Case, Diagnosis]:
    case = generated([parts], seconds, 0.0, 6, ends=False)
    return case, conclude_case(case)


GROWING = [Part("anonymous", "line", 120, True, False)]
RATE = Rate(estimate=17.0 * MIB, low=16.0 * MIB, high=18.0 * MIB)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"verdict": "steady"}, "and a finding says"),
        ({"verdict": "insufficient-data"}, "insufficient-data"),
        ({"headline": "Memory grows 17.0 MiB/min"}, "the headline says 17.0 MiB"),
        ({"headline": "nothing to see"}, "does not say that it grows"),
        ({"findings": (), "layers": ()}, "neither a finding nor a layer"),
        ({"verdict": "steady", "findings": (), "layers": ()}, "interval of the growth begins"),
        ({"layers": (LayerRow(layer="anon-mmap", in_rss=True, bytes=9, rate=RATE, verdict="steady"),)}, "is steady"),
        ({"next_step": None}, "no next step"),
    ],
)
def test_the_check_detects_a_contradiction(change: dict[str, Any], says: str) -> None:
    case, diagnosis = of(GROWING)
    assert diagnosis.verdict == "growing"
    assert contradictions(case, diagnosis) == []
    assert says in " ".join(contradictions(case, replace(diagnosis, **change)))


def test_a_leak_needs_a_finding_with_that_verdict() -> None:
    case, diagnosis = of(GROWING)
    item = EvidenceItem(kind="lost", text="nothing points to it")
    finding = replace(diagnosis.findings[0], verdict="leak", evidence=(item,))
    told = " ".join(contradictions(case, replace(diagnosis, findings=(finding,))))
    assert "a finding or a layer says leak" in told
    assert "its finding says leak" in told
