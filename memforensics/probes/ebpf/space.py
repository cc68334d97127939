"""One traced address space: its process, its symbols and learned rules, and its book."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator

from memforensics.case.model import AllocationSite, Frame, Stack
from memforensics.errors import MemforensicsError
from memforensics.probes.ebpf.book import Book
from memforensics.probes.ebpf.layout import Ended, LiveRange, NativePc, StackEvent
from memforensics.probes.ebpf.learn import Learner
from memforensics.probes.ebpf.programs import MmapPrograms
from memforensics.probes.ebpf.python import PythonSide
from memforensics.symbols.space import AddressSpace
from memforensics.symbols.symbolize import Symbolizer
from memforensics.target import Process

SETTLE_S = 1.0
SPARING = 50.0  # between two readings of the kernel's table, so many times what one takes ...
MANY_CUTS = 4096  # ... unless so many removals wait


class TracedSpace:
    """Made while the process lives; keeps what it symbolized after it left.

    TargetGone, PermissionNeeded from the constructor.
    """

    def __init__(self, number: int, process: Process, programs: MmapPrograms, numbers: "itertools.count[int]") -> None:
        self.number, self.process = number, process
        self.pid = process.pid
        self.ended = False
        self._programs = programs
        self._modules = AddressSpace(process)
        self._symbolizer = Symbolizer(self._modules)
        self.python = PythonSide(process, self._modules, programs)
        self.learner = Learner(
            self._modules,
            lambda pc, packed: programs.put_rule(number, pc, packed),
            lambda pc: programs.drop_rule(number, pc),
        )
        self.book = Book(lambda start: programs.take_live(number, start), numbers)
        self._settle_at = 0.0

    def stack(self, event: StackEvent) -> None:
        """A stack met for the first time: learned from, symbolized and noted."""
        native, complete = event.native, event.ended is Ended.COMPLETE
        if event.registers is not None and not self.ended:
            try:
                learned = self.learner.learn(event)
                native, complete = learned.native, learned.complete
            except MemforensicsError:
                pass  # it is leaving: the kernel's part of the stack stands
        self.book.new_site(
            event.site,
            (event.kind, event.shared, event.file_backed, complete, native, event.python),
            event.kind,
            event.shared,
            event.file_backed,
            complete,
            self._symbolizing(native, event, complete),
        )

    def _symbolizing(self, native: tuple[NativePc, ...], event: StackEvent, complete: bool) -> Callable[[], Stack]:
        """What only the living process tells is read now; names and lines when somebody wants them."""
        if not self.ended:
            if any(self._modules.find(pc.pc) is None for pc in native):
                with contextlib.suppress(MemforensicsError):  # it is leaving
                    self.learner.look_again()
            self.python.look()
        symbolized = [self._symbolized(pc) for pc in native]
        known = self.python.decoded(event.python)

        def symbolize() -> Stack:
            frames = [(pc, frame()) for pc, frame in zip(native, symbolized, strict=True)]
            spliced = self.python.spliced(frames, event.python, event.python_flags, complete, known)
            return self._symbolizer.expanded(spliced)

        return symbolize

    def _symbolized(self, pc: NativePc) -> Callable[[], Frame]:
        """Its module, whose file is opened now; of code without a file all that can be known, now."""
        found = self._modules.find(pc.pc - pc.is_return)
        if found is None or self._modules.elf(found[0]) is None:
            frame = self._symbolizer.frame_at(pc.pc, pc.guessed, is_return=pc.is_return)
            return lambda: frame
        module, vaddr = found[0], found[1] + pc.is_return
        return lambda: self._symbolizer.frame(module, vaddr, pc.guessed, is_return=pc.is_return)

    def code_mapped(self, start: int, end: int) -> None:
        self.learner.replaced(start, end)

    def settle(self) -> None:
        """Holds the removals that were told of against the kernel's table, if there were any. That reads all of it: so
        a while passes between two times."""
        now = time.monotonic()
        many = len(self.book.cuts) >= MANY_CUTS
        if not self.book.cuts or self.ended or (now < self._settle_at and not many):
            return
        self.settle_now(self._programs.live().get(self.number, []))
        self._settle_at = time.monotonic() + max(SETTLE_S, SPARING * (time.monotonic() - now))

    def settle_now(self, live: list[LiveRange]) -> list[LiveRange]:
        """The same, against this content of the table; what of it the kernel keeps."""
        return self.book.settle(live)

    def sites(self, ended_ns: int) -> Iterator[AllocationSite]:
        for record in self.book.sites.values():
            if record.now.allocated_count:  # else: the first part of a stack that was completed later
                yield record.site(self.pid, ended_ns)

    def end(self) -> None:
        """The process left or runs another program: its tables in the kernel are freed, what is known stays."""
        if self.ended:
            return
        self.ended = True
        self._programs.forget(self.number)
        self.learner.forget_all()
        self.python.end()
