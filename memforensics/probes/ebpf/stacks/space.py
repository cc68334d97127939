"""An address space whose stacks are walked: its symbols, and the rules that are learned for it."""

import contextlib

from memforensics.errors import MemforensicsError
from memforensics.probes.ebpf.loader.layout import Ended, StackEvent
from memforensics.probes.ebpf.loader.program_set import StackPrograms
from memforensics.probes.ebpf.stacks.python_frames import PythonSide
from memforensics.probes.ebpf.stacks.unwind_rule_cache import RuleCache, UnwoundStack
from memforensics.symbols.address_space import AddressSpace
from memforensics.symbols.names.symbolizer import Symbolizer
from memforensics.target import Process


class UnwoundSpace:
    """Made while the process lives; what was symbolized stays after it left.

    TargetGone, PermissionNeeded from the constructor.
    """

    def __init__(self, number: int, process: Process, programs: StackPrograms) -> None:
        self.number, self.process = number, process
        self.ended = False
        self._modules = AddressSpace(process)
        self._symbolizer = Symbolizer(self._modules)
        self.python = PythonSide(process, self._modules, programs)
        self.rule_cache = RuleCache(
            self._modules,
            lambda pc, packed: programs.put_rule(number, pc, packed),
            lambda pc: programs.drop_rule(number, pc),
        )

    def learned(self, event: StackEvent) -> UnwoundStack:
        """Its frames, as far as they are known by now. Reads what only the living process tells."""
        found = UnwoundStack(event.native, event.ended is Ended.COMPLETE)
        if self.ended:
            return found
        with contextlib.suppress(MemforensicsError):  # it is leaving: the kernel's part of the stack stands
            if event.registers is not None:
                found = self.rule_cache.learn(event)
        with contextlib.suppress(MemforensicsError):
            if any(self._modules.find(pc.pc) is None for pc in found.native):
                self.rule_cache.refresh_if_due()
        self.python.look()
        return found

    def end(self) -> None:
        """The process left or runs another program: its rules in the kernel are freed, what is known stays."""
        if not self.ended:
            self.ended = True
            self.rule_cache.drop_all()
            self.python.end()
