"""Frames for people: function, file and line of a native address."""

from dataclasses import replace

from memforensics.case.model import Frame
from memforensics.symbols.elf import BadElf
from memforensics.symbols.lines import TimeBudget
from memforensics.symbols.names import demangle
from memforensics.symbols.space import AddressSpace, MappedModule
from memforensics.symbols.unwind import UnwoundFrame

SIGNAL_FRAME = "<signal handler called>"
_MAX_CACHED = 1 << 16


class Symbolizer:
    """Symbolizes addresses of one address space. `lines_budget_s`: all the time that reading DWARF lines may take."""

    def __init__(self, space: AddressSpace, *, lines_budget_s: float = 2.0) -> None:
        self._space = space
        self._budget = TimeBudget(lines_budget_s)
        self._frames: dict[object, Frame] = {}

    def frame(
        self, module: MappedModule | None, vaddr: int | None, guessed: bool = False, *, is_return: bool = True
    ) -> Frame:
        """A native Frame. `vaddr` is the address in the module's file; of a return address the byte before is looked
        up (is_return), `offset` stays the address itself. function is None where no symbol covers it."""
        if module is None or vaddr is None:
            return Frame(kind="native", function=None, guessed=guessed)
        key = (module.identity, vaddr, guessed, is_return)
        frame = self._frames.get(key)
        if frame is None:
            if len(self._frames) >= _MAX_CACHED:
                self._frames.clear()
            frame = self._frames[key] = self._make(module, vaddr, guessed, vaddr - is_return)
        return frame

    def _make(self, module: MappedModule, vaddr: int, guessed: bool, lookup: int) -> Frame:
        function, build_id, place = None, None, None
        elf, lines = self._space.elf(module), self._space.lines(module)
        if elf is not None and lines is not None:
            try:
                build_id = elf.build_id()
                symbol = elf.symbol_at(lookup)
                function = demangle(symbol.name) if symbol is not None and symbol.name else None
            except BadElf:
                pass  # damaged tables: the address and the module still stand
            place = lines.find(lookup, self._budget)
        return Frame(
            kind="native",
            function=function,
            module=module.path,
            build_id=build_id,
            file=place[0] if place is not None else None,
            line=place[1] if place is not None else None,
            offset=vaddr,
            guessed=guessed,
        )

    def frame_at(self, pc: int, guessed: bool = False, *, is_return: bool = True) -> Frame:
        """The same by run-time pc."""
        found = self._space.find(pc - is_return)
        if found is None:
            return Frame(kind="native", function=None, guessed=guessed)
        return self.frame(found[0], found[1] + is_return, guessed, is_return=is_return)

    def unwound(self, frame: UnwoundFrame) -> Frame:
        """The same of an unwound frame. A signal's trampoline is returned to but was never called: it is looked up at
        its first byte, and named as gdb names it where its file does not."""
        if frame.rule is None or not frame.rule.signal_frame:
            return self.frame(frame.module, frame.vaddr, frame.guessed, is_return=frame.is_return)
        found = self.frame(frame.module, frame.vaddr, frame.guessed, is_return=False)
        return found if found.function is not None else replace(found, function=SIGNAL_FRAME)
