"""The one sentence of a process that is steady: true of what its line looked like."""

import pytest

from memforensics.case.model import Anchor, Case, CaseMeta, Sample
from memforensics.jobs.case.conclude import conclude_case
from memforensics.units import MIB, NS_PER_S

META = CaseMeta(memforensics_version="0", command="watch", anchor=Anchor(monotonic_ns=0, wall_ns=0), root_pid=7, seed=1)


def steady(sizes_mib: list[int]) -> str:
    samples = tuple(
        Sample(pid=7, t_ns=at * NS_PER_S // 2, rss_anon=size * MIB, rss_file=0, rss_shmem=0)
        for at, size in enumerate(sizes_mib)
    )
    diagnosis = conclude_case(Case(meta=META, samples=samples))
    assert diagnosis.verdict == "steady"
    return diagnosis.headline


@pytest.mark.parametrize(
    ("sizes_mib", "says"),
    [
        ([60] * 40, "No significant growth in 20 s"),
        ([7] * 11 + [67] * 29, "Memory grew 60.0 MiB at first and is flat since; observed for 20 s"),
        ([7] * 31 + [67] * 9, "Memory grew 60.0 MiB in one or two steps; observed for 20 s"),
        ([67] * 11 + [7] * 29, "No significant growth in 20 s"),
        ([20, 60, 100, 140] * 10, "Memory fluctuates; no net growth in 20 s"),
    ],
    ids=["flat", "imports", "late", "given-back", "saw-teeth"],
)
def test_headline_of_a_steady_process(sizes_mib: list[int], says: str) -> None:
    assert steady(sizes_mib) == says
