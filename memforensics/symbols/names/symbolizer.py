"""Symbolization: function, file, line and inlined calls of a native address."""

import contextlib
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from memforensics.case.model import Frame, Stack
from memforensics.symbols.address_space import AddressSpace, MappedModule
from memforensics.symbols.elf.reader import BadElf, ElfFile
from memforensics.symbols.names.demangle import demangle
from memforensics.symbols.names.lines import LineReader, Location, WaitBudget
from memforensics.symbols.unwind.unwinder import UnwoundFrame

SIGNAL_FRAME = "<signal handler called>"
_MAX_CACHED = 1 << 16
_PART = re.compile(r"(\.(part|cold|isra|constprop)(\.\d+)?)+$")


@dataclass(frozen=True, slots=True)
class Named:
    """What a file says about one address. None: unknown. `inlined`: (function, file, line) of each inlined call,
    innermost first; `file` and `line` are then where the outermost of them was called."""

    function: str | None = None
    file: str | None = None
    line: int | None = None
    inlined: tuple[tuple[str | None, str | None, int | None], ...] = ()


def function_at(elf: ElfFile, vaddr: int) -> str | None:
    """The demangled name of the symbol there."""
    with contextlib.suppress(BadElf):
        symbol = elf.symbol_at(vaddr)
        return demangle(symbol.name) if symbol is not None and symbol.name else None
    return None


def named(function: str | None, locations: Sequence[Location]) -> Named:
    """The function of the symbol table with its locations, innermost first."""
    if not locations:
        return Named(function)
    *inlined, own = [
        (demangle(one.function) if one.function else None, *_place(one)) for one in _without_splits(locations)
    ]
    return Named(function, own[1], own[2], tuple(inlined))


def _place(location: Location) -> tuple[str | None, int | None]:
    if not location.file or not location.line:
        return None, None
    return posixpath.normpath(location.file), location.line


def _without_splits(locations: Sequence[Location]) -> list[Location]:
    """gcc splits a function (-fpartial-inlining) and joins the parts again, which DWARF shows as a function inlined
    into itself. That is not a call."""
    out: list[Location] = []
    for location in locations:
        if out and location.function and out[-1].function == _whole(location.function):
            continue
        out.append(location)
    return out


def _whole(function: str) -> str:
    """The function that the compiler split this part off."""
    return _PART.sub("", function)


def frames_of(frame: Frame, found: Named) -> list[Frame]:
    """The frames inlined there, then the frame itself."""
    return [
        *(replace(frame, function=f, file=file, line=line, inlined=True) for f, file, line in found.inlined),
        replace(frame, function=found.function, file=found.file, line=found.line),
    ]


class Symbolizer:
    """Symbolizes addresses of one address space: functions at once, lines and inlined calls in `expanded`.

    `lines_budget_s`: how long it waits for lines, in all.
    """

    def __init__(self, space: AddressSpace, *, lines_budget_s: float = 2.0) -> None:
        self._space = space
        self._budget = WaitBudget(lines_budget_s)
        self._frames: dict[object, Frame] = {}
        self._places: dict[int, tuple[Frame, LineReader, int]] = {}  # by the frame's id: where to look for its line
        self._unread: dict[str, str] = {}
        self._late: set[str] = set()

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
                self._places.clear()
            frame = self._frames[key] = self._make(module, vaddr, guessed, vaddr - is_return)
        return frame

    def _make(self, module: MappedModule, vaddr: int, guessed: bool, lookup: int) -> Frame:
        elf, lines = self._space.elf(module), self._space.lines(module)
        frame = Frame(
            kind="native",
            function=function_at(elf, lookup) if elf is not None else None,
            module=module.path,
            build_id=self._space.build_id(module),
            offset=vaddr,
            guessed=guessed,
        )
        if lines is not None and lines.has_any:
            self._places[id(frame)] = frame, lines, lookup
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
        """A stack of frames that this made, with their files and lines, and with what was inlined at each in front."""
        return self.with_lines(stack)[0]

    def with_lines(self, stack: Stack) -> tuple[Stack, bool]:
        """The same, and whether that is all: False while a large file is still being read."""
        places = [self._places.get(id(frame)) for frame in stack.frames]
        by_file: dict[LineReader, list[tuple[Frame, int]]] = {}
        for place in places:
            if place is not None:
                by_file.setdefault(place[1], []).append((place[0], place[2]))
        is_all = True
        for lines, asked in by_file.items():
            name = PurePosixPath(asked[0][0].module or "").name
            if lines.look_up([vaddr for _, vaddr in asked], self._budget):
                self._late.discard(name)
            else:
                self._late.add(name)
                is_all = False
            if lines.why_not is not None:
                self._unread[name] = lines.why_not
        frames: list[Frame] = []
        for frame, place in zip(stack.frames, places, strict=True):
            known = place[1].at(place[2]) if place is not None else ()
            frames += frames_of(frame, named(frame.function, known)) if known else (frame,)
        return replace(stack, frames=tuple(frames)), is_all

    @property
    def lost(self) -> Counter[str]:
        """Files whose lines are missing, with the reason."""
        rows = [f"files without lines: the debug information of {n} was not read: {w}" for n, w in self._unread.items()]
        rows += [f"files without lines: the debug information of {n} is large (case symbolize)" for n in self._late]
        return Counter(rows)
