"""Who touches memory that was not there: page faults by hybrid stack, kept where the page is still resident.

`ebpf/faults.bpf.c` walks a stack where a fault made something resident and notes the page; here stacks are symbolized
when they are met for the first time, and pages are looked up (pagemap) at the end and now and then before. Nothing is
written into the target, nothing stops it. Of very many faults (more than 8,000 a second on pages that are new to the
process, or 1,000 on others, beside 16,384 saved up of each) a share is walked, and counts for the rest.

Evidence of who *touches*, never of who leaks: a leaked block that reuses pages costs no fault, and a temporary that
comes next takes the blame (measured: 0% of the faults for the leaker). So no finding is made of these sites.
"""

import contextlib
import itertools
import platform
from collections.abc import Iterator

from memforensics.case.model import AllocationSite, Sample
from memforensics.errors import MemforensicsError, ProbeFailed
from memforensics.probes.base import Availability
from memforensics.probes.ebpf.faults.pages import NOTHING_TOUCHED
from memforensics.probes.ebpf.faults.programs import FaultPrograms, SiteCounts, why_not_exact
from memforensics.probes.ebpf.faults.space import FaultSite, FaultSpace
from memforensics.probes.ebpf.trace_loop import LossRow, Totals, TreeTrace
from memforensics.probes.ebpf.traced_processes import Member
from memforensics.target import Process

PRUNE_AT = 0.5  # of the table's capacity: pages that went are taken out


class FaultTrace(TreeTrace[FaultPrograms, FaultSpace]):
    """The probe. `open` takes one process or several; children of traced processes join by themselves."""

    name = "fault-trace"

    def availability(self, target: Process) -> Availability:
        why = why_not_exact(platform.release())
        able = super().availability(target)
        return Availability("unavailable", why) if why and able.status == "ok" else able

    # --- beginning

    def _load(self) -> FaultPrograms:
        return FaultPrograms(python=self.python, sampled=self._governor.share is None)

    def _make_space(self, number: int, process: Process, numbers: "itertools.count[int]") -> FaultSpace:
        return FaultSpace(number, process, self.programs, numbers)

    def _add_target(self, member: Member[FaultSpace]) -> bool:
        return self.programs.add_target(member.pid, member.space.number, member.began)

    def _release_all(self, space: FaultSpace) -> None:
        space.gone()

    # --- looking

    def _update_counts(self) -> None:
        counts: dict[int, list[tuple[int, SiteCounts]]] = {}
        for number, site, value in self.programs.counts():
            counts.setdefault(number, []).append((site, value))
        for number, space in self.members.spaces.items():
            if not space.ended:
                space.update(counts.get(number, []))

    def _look(self, now: int) -> None:
        """What of the touched pages is still there, and a point of each site's timeline."""
        touched = self.programs.touched()
        crowded = sum(map(len, touched.values())) > PRUNE_AT * self.programs.capacity
        for member in self.members.alive:
            with contextlib.suppress(MemforensicsError):  # it is leaving: what was seen last stands
                gone = member.space.look(touched.get(member.space.number, NOTHING_TOUCHED))
                if crowded:
                    self.programs.forget_pages(member.space.number, gone)
            for site in member.space.sites.values():
                site.note(member.began_ns, now, member.space.max_points)

    def _news(self, now: int) -> Iterator[AllocationSite]:
        for member in self.members.alive:
            yield from self._sites(member, now)

    def _saw_anything(self) -> bool:
        if any(space.sites for space in self.members.spaces.values()):
            return True
        return any(self.programs.stacks_skipped(member.pid) for member in self.members.alive)

    def _unseen_growth(self, began: Sample, last: Sample) -> int | None:
        return last.growth_metric - began.growth_metric

    def _blind(self, pid: int) -> ProbeFailed:
        return ProbeFailed(
            f"process {pid} grows, and its page faults are not seen",
            why="this /proc belongs to another PID namespace than the process does, or another process or "
            "the kernel itself fills its memory",
            enable="run memforensics on the host, or in a container with --pid=host",
        )

    # --- the end

    def _last_look(self, ended_ns: int) -> None:
        self._look(ended_ns)

    def _sites(self, member: Member[FaultSpace], ended_ns: int) -> Iterator[AllocationSite]:
        return (site.site(member.pid) for site in _touched(member))

    def _totals(self, member: Member[FaultSpace]) -> Totals:
        resident = sum(site.resident_bytes for site in _touched(member) if not site.file_backed)
        return Totals(
            events=sum(site.touched.faults for site in _touched(member)),
            outstanding_bytes=resident,
            resident_bytes=resident,
        )

    def _own_losses(self) -> Iterator[LossRow]:
        sites = (site for member in self.members for site in _touched(member))
        cut_short = sum(site.touched.faults for site in sites if not site.stack.complete)
        yield "faults whose stack could not be followed to its end", "a longer trace", cut_short
        dropped_sites = sum(space.dropped_sites for member in self.members for space in member.spaces)
        yield "stacks not told apart: too many different ones", "a shorter trace", dropped_sites
        stacks_skipped = sum(self.programs.stacks_skipped(member.pid) or 0 for member in self.members)
        why, reduce = "to keep --overhead", "a higher --overhead"
        if self._governor.share is None:
            why = f"of very many (of pages touched again, one of {self.sampled_one_in} was)"
            reduce = "--overhead 100%, which looks at each"
        yield f"faults whose stack was not looked at, {why}: others count for them", reduce, stacks_skipped


def _touched(member: Member[FaultSpace]) -> Iterator[FaultSite]:
    """Its sites that brought something: others are the first part of a stack that was completed later."""
    return (site for space in member.spaces for site in space.sites.values() if site.touched.faults)
