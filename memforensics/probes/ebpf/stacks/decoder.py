"""The one place where a stack is decoded: addresses and Python frames of the kernel's event become named frames."""

import contextlib
from collections import Counter
from collections.abc import Callable

from memforensics.case.model import Frame, Stack
from memforensics.errors import MemforensicsError
from memforensics.probes.ebpf.loader.layout import Ended, NativePc, StackEvent
from memforensics.probes.ebpf.loader.program_set import StackPrograms
from memforensics.probes.ebpf.stacks.python_frames import PythonUnwinder
from memforensics.probes.ebpf.stacks.sites import DecodedStack
from memforensics.probes.ebpf.stacks.unwind_rule_cache import RuleCache, UnwoundStack
from memforensics.symbols.address_space import AddressSpace
from memforensics.symbols.names.symbolizer import Symbolizer
from memforensics.target import Process


class StackDecoder:
    """The modules, names, Python frames and unwind rules of one address space. TargetGone, PermissionNeeded from the
    constructor."""

    def __init__(self, space: int, process: Process, programs: StackPrograms) -> None:
        self.ended = False
        self._modules = AddressSpace(process)
        self._symbolizer = Symbolizer(self._modules)
        self.python = PythonUnwinder(process, self._modules, programs)
        self.rules = RuleCache(
            self._modules,
            lambda pc, packed: programs.put_rule(space, pc, packed),
            lambda pc: programs.drop_rule(space, pc),
        )

    def decode(self, event: StackEvent) -> DecodedStack:
        """Reads at once what only the live process can tell: the unwind rules of a miss, the mapped files, the code
        objects."""
        native, complete = self._unwind(event)
        find_frames = [self._frame_finder(pc) for pc in native]
        python, flags = event.python, event.python_flags
        code = self.python.decoded(python)

        def find_names() -> Stack:
            frames = [(pc, find_frame()) for pc, find_frame in zip(native, find_frames, strict=True)]
            return self.python.spliced(frames, python, flags, complete, code)

        return DecodedStack(native, python, complete, find_names, self._symbolizer.with_lines)

    @property
    def lost(self) -> Counter[str]:
        """What is missing in the stacks."""
        return self.python.lost + self._symbolizer.lost

    def end(self) -> None:
        """The process exited or runs another program: frees the kernel's rules. Decoded stacks stay."""
        if not self.ended:
            self.ended = True
            self.rules.drop_all()
            self.python.end()

    def _unwind(self, event: StackEvent) -> UnwoundStack:
        found = UnwoundStack(event.native, event.ended is Ended.COMPLETE)
        if self.ended:
            return found
        with contextlib.suppress(MemforensicsError):  # the process is exiting: keep what the kernel walked
            if event.registers is not None:
                found = self.rules.learn(event)
        with contextlib.suppress(MemforensicsError):
            if any(self._modules.find(pc.pc) is None for pc in found.native):
                self.rules.refresh_if_due()
        self.python.detect()
        return found

    def _frame_finder(self, pc: NativePc) -> Callable[[], Frame]:
        """Opens the file of the frame's module now and looks up the name later. Code without a file is named now."""
        found = self._modules.find(pc.pc - pc.is_return)
        if found is None or self._modules.elf(found[0]) is None:
            frame = self._symbolizer.frame_at(pc.pc, pc.guessed, is_return=pc.is_return)
            return lambda: frame
        module, vaddr = found[0], found[1] + pc.is_return
        return lambda: self._symbolizer.frame(module, vaddr, pc.guessed, is_return=pc.is_return)
