"""`case symbolize`: adds names to the frames of a case that was recorded without symbols."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from memforensics.case.model import Frame, Stack
from memforensics.case.store import CaseFile
from memforensics.case.views import Symbolized
from memforensics.errors import UsageError
from memforensics.symbols.names.lines import WaitBudget
from memforensics.symbols.names.offline import Finder, NamedFile, with_names
from memforensics.symbols.names.symbolizer import Named

DWARF_BUDGET_S = 120.0

NO_OFFSET = "no module and offset were recorded (code without a file, or a guessed frame)"
NO_BUILD_ID = "the module has no build-id, so its file cannot be identified"
NO_FILE = "no file with its build-id and symbols was found"
NO_SYMBOL = "its file has no symbol at that offset"

Place = tuple[str, str | None, int, int]  # module, build-id, offset, address to look up


def symbolize(
    path: Path, *, folders: Sequence[Path] = (), roots: Sequence[Path] = (), output: Path | None = None
) -> Symbolized:
    """Names the frames of a case, in the file itself (in one transaction) or in a new one.

    UsageError if a folder does not exist; CaseError if the case cannot be read or written.
    """
    for place in (*folders, *roots):
        if not place.exists():
            raise UsageError(f"{place} does not exist")
    if output is not None:
        with CaseFile.open(path) as case:
            case.copy_to(output)
    with CaseFile.open(output or path, write=True) as case:
        naming = _Naming(Finder(folders, roots), Symbolized(output or path))
        naming.result.stacks_changed = case.rewrite_stacks(naming.stack)
    return naming.result


class _Naming:
    def __init__(self, finder: Finder, result: Symbolized) -> None:
        self._finder, self.result = finder, result
        self._files: dict[tuple[str, str], NamedFile | None] = {}
        self._places: dict[Place, Named | None] = {}
        self._budget = WaitBudget(DWARF_BUDGET_S)

    def stack(self, stack: Stack) -> Stack:
        for frame in stack.frames:
            if frame.kind != "python" and frame.function is None and (frame.module is None or frame.offset is None):
                self.result.unnamed[frame.module or "", frame.build_id, NO_OFFSET] += 1
        return with_names(stack, self._named)

    def _named(self, frame: Frame, vaddr: int) -> Named | None:
        """None: the frame stays as it is."""
        if frame.module is None or frame.offset is None:
            return None
        place = (frame.module, frame.build_id, frame.offset, vaddr)
        if place not in self._places:
            self._places[place] = self._look_up(frame, vaddr)
        return self._places[place]

    def _look_up(self, frame: Frame, vaddr: int) -> Named | None:
        result = self.result
        if frame.function is not None and frame.line is not None:
            result.known += 1
            return None
        assert frame.module is not None
        found, why = self._find(frame, vaddr)
        function = frame.function or found.function
        if function is None:
            result.unnamed[frame.module, frame.build_id, why] += 1
        if found == Named():
            return None
        result.named += frame.function is None and function is not None
        result.placed += frame.line is None and found.line is not None
        result.inlined += len(found.inlined)
        return found if found.function is not None else replace(found, function=frame.function)

    def _find(self, frame: Frame, vaddr: int) -> tuple[Named, str]:
        """What the file says, and the reason if it says nothing."""
        if frame.build_id is None or frame.module is None:
            return Named(), NO_BUILD_ID
        key = (frame.module, frame.build_id)
        if key not in self._files:
            self._files[key] = self._finder.find(*key)
        file = self._files[key]
        return (file.name(vaddr, self._budget), NO_SYMBOL) if file is not None else (Named(), NO_FILE)
