"""Whether anything points to the memory of a growing site: two searches of the process's memory during a trace, some
time apart, and the ReferenceChecks from them (probes/heap/references.py)."""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from memforensics.analysis.diagnosis import analyze
from memforensics.analysis.survival import LEAST_TESTED, sites_to_check
from memforensics.case.model import Case, ProbeStatus, ReferenceCheck
from memforensics.errors import MemforensicsError, TargetError
from memforensics.jobs.observe.background import BackgroundTasks
from memforensics.jobs.observe.recorder import Record, probe_failed
from memforensics.probes.ebpf.mmap.probe import MmapTrace
from memforensics.probes.heap.references import LIMIT_S, Block, Search, old_blocks, search
from memforensics.target import open_process
from memforensics.units import NS_PER_S

NAME = "references"
CHOOSE_AT = 0.5  # of the time
CHOOSE_EVERY = 0.05
SECOND_AT = 0.85
LEAST_APART_NS = NS_PER_S
SEARCH_SHARE = 0.25  # of the time, at most, for one search

Sampled = dict[int, tuple[Block, ...]]  # site -> blocks


@dataclass(frozen=True, slots=True)
class _First:
    """The first search of one process."""

    sampled: Sampled
    found: Search


class References:
    """One check during an observation. Call `step` in the thread that polls the trace; the searches run in
    `background`."""

    def __init__(self, background: BackgroundTasks, seconds: float, seed: int) -> None:
        """`seconds`: the length of the observation."""
        self._background, self._rng = background, random.Random(seed)
        self._limit_s = min(LIMIT_S, SEARCH_SHARE * seconds)
        self._next_choice = CHOOSE_AT
        self._chosen: list[tuple[int, int]] | None = None
        self._ended = False
        self._first: dict[int, _First] = {}

    def step(self, elapsed_share: float, trace: MmapTrace, case: Callable[[], Case]) -> None:
        """Does what is due. `elapsed_share`: the part of the observation that has passed. Sites are chosen again until
        some have enough old blocks, because a trace may start late."""
        if self._chosen is not None:
            chosen, self._chosen = self._chosen, None
            self._sample(trace, chosen)
        elif not self._first and elapsed_share >= self._next_choice and not self._background.busy:
            self._next_choice = elapsed_share + CHOOSE_EVERY
            self._background.run(partial(self._choose, case()))
        elif elapsed_share >= SECOND_AT:
            self.search_again(trace)

    def search_again(self, trace: MmapTrace) -> None:
        """Starts the second search if there was a first, long enough ago."""
        now = time.monotonic_ns()
        if self._ended or self._background.busy:
            return
        if not self._first or any(now - first.found.t_ns < LEAST_APART_NS for first in self._first.values()):
            return
        self._ended = True
        for pid, first in self._first.items():
            mapped = {block for site in trace.accounting.blocks(pid) for block in site.blocks}
            self._background.run(partial(self._second_search, pid, first, mapped))

    def missed(self) -> list[Record]:
        """The status of the processes that were searched only once."""
        if self._ended:
            return []
        why, enable = "there was no time for a second search", "a longer --duration"
        return [ProbeStatus(name=NAME, pid=pid, status="partial", why=why, enable=enable) for pid in self._first]

    def _choose(self, case: Case) -> Sequence[Record]:
        self._chosen = sites_to_check(analyze(case).findings)
        return []

    def _sample(self, trace: MmapTrace, chosen: Iterable[tuple[int, int]]) -> None:
        by_process: defaultdict[int, set[int]] = defaultdict(set)
        for pid, site_id in chosen:
            by_process[pid].add(site_id)
        for pid, site_ids in by_process.items():
            now = time.monotonic_ns()
            sampled = {
                site.site_id: old_blocks(site.blocks, site.cohorts, now, self._rng)
                for site in trace.accounting.blocks(pid)
                if site.site_id in site_ids
            }
            sampled = {site_id: blocks for site_id, blocks in sampled.items() if len(blocks) >= LEAST_TESTED}
            if sampled:
                self._background.run(partial(self._first_search, pid, sampled))

    def _first_search(self, pid: int, sampled: Sampled) -> Sequence[Record]:
        found, records = self._searched(pid, (block for blocks in sampled.values() for block in blocks))
        if found is not None:
            self._first[pid] = _First(sampled, found)
        return records

    def _second_search(self, pid: int, first: _First, mapped: set[Block]) -> Sequence[Record]:
        if first.found.why:
            return list(_checks(pid, first, first.found))
        found, records = self._searched(pid, first.found.unreferenced & mapped)
        return records if found is None else [*records, *_checks(pid, first, found)]

    def _searched(self, pid: int, blocks: Iterable[Block]) -> tuple[Search | None, list[Record]]:
        try:
            with closing(open_process(pid)) as process:
                found = search(process, blocks, limit_s=self._limit_s)
        except TargetError:
            return None, []
        except MemforensicsError as error:
            return None, [probe_failed(NAME, error, pid=pid)]
        if not found.why:
            return found, [ProbeStatus(name=NAME, pid=pid, status="ok")]
        longer = "a longer --duration gives a search more time" if self._limit_s < LIMIT_S else ""
        return found, [ProbeStatus(name=NAME, pid=pid, status="partial", why=found.why, enable=longer)]


def _checks(pid: int, first: _First, second: Search) -> Iterable[ReferenceCheck]:
    for site_id, blocks in first.sampled.items():
        yield ReferenceCheck(
            pid=pid,
            site_id=site_id,
            first_ns=first.found.t_ns,
            second_ns=second.t_ns,
            tested=len(blocks),
            lost=len(second.unreferenced.intersection(blocks)),
            bytes_read=max(first.found.bytes_read, second.bytes_read),
            complete=not second.why,
            why=second.why,
        )
