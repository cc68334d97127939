"""Frames for people: function, file and line of a native address, and what was inlined there."""

import contextlib
from dataclasses import dataclass, replace

from memforensics.case.model import Frame, Stack
from memforensics.symbols.address_space import AddressSpace, MappedModule
from memforensics.symbols.elf.reader import BadElf, ElfFile
from memforensics.symbols.names.demangle import demangle
from memforensics.symbols.names.lines import LineReader, TimeBudget
from memforensics.symbols.unwind.unwinder import UnwoundFrame

SIGNAL_FRAME = "<signal handler called>"
_MAX_CACHED = 1 << 16


@dataclass(frozen=True, slots=True)
class Named:
    """What a file says about one address. None: it does not say. `inlined`: (function, file, line) of what was inlined
    there, innermost first; then `file` and `line` are where the outermost of them was called."""

    function: str | None = None
    file: str | None = None
    line: int | None = None
    inlined: tuple[tuple[str | None, str | None, int | None], ...] = ()


def name_at(elf: ElfFile, lines: LineReader, vaddr: int, budget: TimeBudget) -> Named:
    """Looks one address up; does not raise on damaged files."""
    function = None
    with contextlib.suppress(BadElf):
        symbol = elf.symbol_at(vaddr)
        function = demangle(symbol.name) if symbol is not None and symbol.name else None
    file, line = lines.find(vaddr, budget) or (None, None)
    inlined = []
    for call in lines.inlined(vaddr, budget):
        inlined.append((demangle(call.function) if call.function else None, file, line))
        file, line = call.file, call.line
    return Named(function, file, line, tuple(inlined))


def frames_of(frame: Frame, found: Named) -> list[Frame]:
    """The frames inlined there, then the frame itself."""
    return [
        *(replace(frame, function=f, file=file, line=line, inlined=True) for f, file, line in found.inlined),
        replace(frame, function=found.function, file=found.file, line=found.line),
    ]


class Symbolizer:
    """Symbolizes addresses of one address space. `lines_budget_s`: all the time that reading DWARF may take."""

    def __init__(self, space: AddressSpace, *, lines_budget_s: float = 2.0) -> None:
        self._space = space
        self._budget = TimeBudget(lines_budget_s)
        self._frames: dict[object, Frame] = {}
        self._inlined: dict[Frame, Named] = {}

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
                self._inlined.clear()
            frame = self._frames[key] = self._make(module, vaddr, guessed, vaddr - is_return)
        return frame

    def _make(self, module: MappedModule, vaddr: int, guessed: bool, lookup: int) -> Frame:
        named = Named()
        elf, lines = self._space.elf(module), self._space.lines(module)
        if elf is not None and lines is not None:
            named = name_at(elf, lines, lookup, self._budget)
        frame = Frame(
            kind="native",
            function=named.function,
            module=module.path,
            build_id=self._space.build_id(module),
            file=named.file,
            line=named.line,
            offset=vaddr,
            guessed=guessed,
        )
        if named.inlined:
            self._inlined[frame] = named
        return frame

    def frame_at(self, pc: int, guessed: bool = False, *, is_return: bool = True) -> Frame:
        """The same by run-time pc, which may be in code of no file."""
        found = self._space.find(pc - is_return)
        if found is None:
            return Frame(kind="native", function=self._space.jitted(pc - is_return), guessed=guessed)
        frame = self.frame(found[0], found[1] + is_return, guessed, is_return=is_return)
        if (
            frame.function is None and self._space.elf(found[0]) is None
        ):  # a memfd that a just-in-time compiler writes to, say
            return replace(frame, function=self._space.jitted(pc - is_return))
        return frame

    def unwound(self, frame: UnwoundFrame) -> Frame:
        """The same of an unwound frame. A signal's trampoline is returned to but was never called: it is looked up at
        its first byte, and named as gdb names it where its file does not."""
        if frame.module is None or self._space.elf(frame.module) is None:
            return self.frame_at(frame.pc, frame.guessed, is_return=frame.is_return)
        if frame.rule is None or not frame.rule.signal_frame:
            return self.frame(frame.module, frame.vaddr, frame.guessed, is_return=frame.is_return)
        found = self.frame(frame.module, frame.vaddr, frame.guessed, is_return=False)
        return found if found.function is not None else replace(found, function=SIGNAL_FRAME)

    def expanded(self, stack: Stack) -> Stack:
        """A stack of frames that this made, with what was inlined at each in front of it."""
        if not self._inlined:
            return stack
        frames: list[Frame] = []
        for frame in stack.frames:
            named = self._inlined.get(frame)
            frames += frames_of(frame, named) if named is not None else (frame,)
        return replace(stack, frames=tuple(frames))
