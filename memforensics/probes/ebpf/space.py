"""One traced address space: its process, its symbols and learned rules, and its book."""

import contextlib
import itertools
from collections.abc import Iterator

from memforensics.case.model import AllocationSite, Stack
from memforensics.errors import MemforensicsError
from memforensics.probes.ebpf.book import Book
from memforensics.probes.ebpf.layout import Ended, NativePc, StackEvent
from memforensics.probes.ebpf.learn import Learner
from memforensics.probes.ebpf.programs import MmapPrograms
from memforensics.probes.ebpf.python import PythonSide
from memforensics.symbols.space import AddressSpace
from memforensics.symbols.symbolize import Symbolizer
from memforensics.target import Process


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
        self.book = Book(lambda *range_: programs.take_overlapping(number, *range_), numbers)

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
            lambda: self._symbolized(native, event, complete),
        )

    def _symbolized(self, native: tuple[NativePc, ...], event: StackEvent, complete: bool) -> Stack:
        if not self.ended:
            if any(self._modules.find(pc.pc) is None for pc in native):
                with contextlib.suppress(MemforensicsError):  # it is leaving
                    self.learner.refresh()
            self.python.look()
        frames = [(pc, self._symbolizer.frame_at(pc.pc, pc.guessed, is_return=pc.is_return)) for pc in native]
        return self.python.spliced(frames, event.python, event.python_flags, complete)

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
