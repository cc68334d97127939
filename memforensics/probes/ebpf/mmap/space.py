"""One traced address space, and its table."""

import itertools
import time
from collections.abc import Callable, Iterator

from memforensics.case.model import AllocationSite, Frame, Stack
from memforensics.probes.ebpf.loader.layout import LiveRange, NativePc, StackEvent
from memforensics.probes.ebpf.mmap.allocation_table import AllocationTable
from memforensics.probes.ebpf.mmap.cohorts import Slots
from memforensics.probes.ebpf.mmap.programs import MmapPrograms
from memforensics.probes.ebpf.stacks.space import UnwoundSpace
from memforensics.target import Process

SETTLE_S = 1.0
SPARING = 50.0  # between two readings of the kernel's table, so many times what one takes ...
MANY_CUTS = 4096  # ... unless so many removals wait: then it passes ...
MANY_SHARE = 0.1  # ... this much of that


class MmapSpace(UnwoundSpace):
    def __init__(self, number: int, process: Process, programs: MmapPrograms, numbers: "itertools.count[int]") -> None:
        super().__init__(number, process, programs)
        self.pid = process.pid
        self._programs = programs
        self.allocations = AllocationTable(lambda start: programs.take_live(number, start), numbers)
        self._settled_at = self._settle_pause = 0.0
        self._told: list[int] | None = None

    def stack(self, event: StackEvent) -> None:
        """A stack met for the first time: learned from and noted. Names and lines come when somebody wants them."""
        native, complete = self.learned(event)
        symbolized = [self._symbolized(pc) for pc in native]
        known = self.python.decoded(event.python)

        def symbolize() -> Stack:
            frames = [(pc, frame()) for pc, frame in zip(native, symbolized, strict=True)]
            spliced = self.python.spliced(frames, event.python, event.python_flags, complete, known)
            return self._symbolizer.expanded(spliced)

        self.allocations.add_site(
            event.site,
            (event.kind, event.shared, event.file_backed, event.tmpfs, event.placed, complete, native, event.python),
            event.kind,
            event.shared,
            event.file_backed,
            complete,
            symbolize,
            tmpfs=event.tmpfs,
            placed=event.placed,
        )

    def _symbolized(self, pc: NativePc) -> Callable[[], Frame]:
        """Its module, whose file is opened now; of code without a file all that can be known, now."""
        found = self._modules.find(pc.pc - pc.is_return)
        if found is None or self._modules.elf(found[0]) is None:
            frame = self._symbolizer.frame_at(pc.pc, pc.guessed, is_return=pc.is_return)
            return lambda: frame
        module, vaddr = found[0], found[1] + pc.is_return
        return lambda: self._symbolizer.frame(module, vaddr, pc.guessed, is_return=pc.is_return)

    def unmaps_are_due(self, now: float) -> bool:
        """Whether the removals that were told of are to be held against the kernel's table. That reads all of it: so a
        while passes between two times."""
        cuts = len(self.allocations.pending_unmaps)
        pause = self._settle_pause * (MANY_SHARE if cuts >= MANY_CUTS else 1.0)
        return cuts > 0 and not self.ended and now >= self._settled_at + pause and self._has_read()

    def resolve_due_unmaps(self, live: list[LiveRange], began: float) -> None:
        """`live`: the table's content of this space, read at `began` or after, once for all that must settle."""
        self.resolve_unmaps(live)
        self._settled_at = time.monotonic()
        self._settle_pause = max(SETTLE_S, SPARING * (self._settled_at - began))

    def resolve_unmaps(self, live: list[LiveRange]) -> list[LiveRange]:
        """The same, against this content of the table; what of it the kernel keeps."""
        is_behind = not self._has_read()
        if not is_behind:
            self._told = self._programs.engine.told_until()
        return self.allocations.resolve_unmaps(live, is_behind=is_behind)

    def _has_read(self) -> bool:
        """Whether the events were handled that were told before the table was read last."""
        return self._told is None or self._programs.engine.has_read(self._told)

    def sites(self, ended_ns: int, slots: Slots) -> Iterator[AllocationSite]:
        for record in self.allocations.sites.values():
            if record.now.allocated_count:  # else: the first part of a stack that was completed later
                yield record.site(self.pid, ended_ns, slots)

    def end(self) -> None:
        if not self.ended:
            super().end()
            self._programs.forget(self.number)
