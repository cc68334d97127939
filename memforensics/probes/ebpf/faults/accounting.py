"""Touched memory by stack: the accounting of a trace of page faults."""

import contextlib
import itertools
import platform
from collections.abc import Iterator
from typing import Any

from memforensics.case.model import AllocationSite
from memforensics.errors import MemforensicsError, ProbeFailed
from memforensics.probes.ebpf.accounting import Totals
from memforensics.probes.ebpf.faults.pages import NOTHING_TOUCHED
from memforensics.probes.ebpf.faults.programs import FaultPrograms, fault_target, why_not_exact
from memforensics.probes.ebpf.faults.space import FaultSite, FaultSpace
from memforensics.probes.ebpf.loader.program_set import LossRow, Sizes
from memforensics.probes.ebpf.trace_loop import BLIND_GROWTH, TraceLoop
from memforensics.probes.ebpf.traced_processes import TracedProcess
from memforensics.target import Process

PRUNE_AT = 0.5  # of the table's capacity: pages that are gone are removed from it


class FaultAccounting:
    """`python`: walk Python frames. `sizes`, `max_pages`: the most that the kernel keeps."""

    name = "fault-trace"

    def __init__(self, *, python: bool = True, sizes: Sizes | None = None, max_pages: int | None = None) -> None:
        self._python, self._sizes, self._max_pages = python, sizes, max_pages

    def unsupported(self) -> str | None:
        return why_not_exact(platform.release())

    def load(self, trace: TraceLoop[FaultSpace, Any], *, bounded: bool) -> FaultPrograms:
        self._trace, self._bounded = trace, bounded
        self._programs = FaultPrograms(
            python=self._python, sampled=not bounded, sizes=self._sizes, max_pages=self._max_pages
        )
        return self._programs

    def open_space(self, number: int, process: Process, site_numbers: "itertools.count[int]") -> FaultSpace:
        return FaultSpace(number, process, self._programs, site_numbers)

    def target(self, traced: TracedProcess[FaultSpace]) -> bytes:
        return fault_target(traced.space.number, traced.first)

    def start(self, traced: TracedProcess[FaultSpace]) -> None:
        """There is nothing to note."""

    def poll(self) -> None:
        """There is nothing to do between two samples."""

    def sample(self, now: int) -> Iterator[AllocationSite]:
        self._update_resident(now)
        return (report for traced in self._trace.processes.alive for report in traced.space.reports(now))

    def _update_resident(self, now: int) -> None:
        """Counts what of the touched pages is still resident, and adds a point to each site's timeline."""
        touched = self._programs.touched()
        is_crowded = sum(map(len, touched.values())) > PRUNE_AT * self._programs.capacity
        for traced in self._trace.processes.alive:
            space = traced.space
            with contextlib.suppress(MemforensicsError):  # it is exiting: the last figures stay
                gone = space.update_resident(touched.get(space.number, NOTHING_TOUCHED))
                if is_crowded:
                    self._programs.forget_pages(space.number, gone)
            for site in space.sites:
                site.note(traced.began_ns, now, space.sites.max_points)

    def blind(self, traced: TracedProcess[FaultSpace]) -> ProbeFailed | None:
        if traced.growth is None or traced.growth < BLIND_GROWTH:
            return None
        return ProbeFailed(
            f"process {traced.pid} grows, but its page faults are not seen",
            why="this /proc belongs to another PID namespace than the process does, or another process or "
            "the kernel itself fills its memory",
            enable="run memforensics on the host, or in a container with --pid=host",
        )

    def before_detach(self) -> None:
        """There is nothing to compare."""

    def finish(self, ended_ns: int) -> None:
        self._update_resident(ended_ns)

    def totals(self, traced: TracedProcess[FaultSpace], ended_ns: int) -> Totals:
        sites = [site for space in traced.spaces for site in space.used_sites]
        resident = sum(site.resident_bytes for site in sites if not site.file_backed)
        return Totals(
            events=sum(site.counts.faults for site in sites), outstanding_bytes=resident, resident_bytes=resident
        )

    def losses(self) -> Iterator[LossRow]:
        spaces = [space for traced in self._trace.processes for space in traced.spaces]
        sites: list[FaultSite] = [site for space in spaces for site in space.used_sites]
        incomplete = sum(site.counts.faults for site in sites if not site.decoded.complete)
        yield "faults whose stack could not be followed to its end", "a longer trace", incomplete
        yield "stacks dropped: the table of stacks is full", "a shorter trace", sum(s.sites.dropped for s in spaces)
        skipped = sum(self._programs.stacks_skipped(traced.pid) or 0 for traced in self._trace.processes)
        why, reduce = ", to keep --overhead", "a higher --overhead"
        if not self._bounded:
            why = f" (1 of {self._trace.meter.sample_period} was, on pages touched again)"
            reduce = "--overhead 100%, which walks each"
        yield f"faults that were not sampled{why}: the sampled ones count for them", reduce, skipped
