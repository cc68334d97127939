"""Symbolization of stored stacks: it needs no process, only files with the same build IDs."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from memforensics.case.model import Frame, Stack
from memforensics.symbols.elf.debug_files import DEBUG_ROOTS, debug_files_for, open_regular
from memforensics.symbols.elf.reader import BadElf, DebugFiles, ElfFile
from memforensics.symbols.names.lines import LineReader, WaitBudget
from memforensics.symbols.names.symbolizer import SIGNAL_FRAME, Named, frames_of, function_at, named
from memforensics.target.rooted import open_in_root

_TRAMPOLINES = (SIGNAL_FRAME, "__restore_rt", "__kernel_rt_sigreturn")
_MAX_FILES = 65536  # looked at in folders given by name


def with_names(stack: Stack, name: Callable[[Frame, int], Named | None]) -> Stack:
    """The stack with names. `name` returns what is known of a frame at the address to look up. None: keep the frame.

    A stored frame does not say whether its offset is a return address (the byte before is looked up) or a pc: it is a
    pc in the leaf and in what a signal interrupted.
    """
    out: list[Frame] = []
    exact = True
    for index, frame in enumerate(stack.frames):
        found = None
        if frame.kind != "python" and frame.offset is not None and not frame.inlined:
            found = name(frame, frame.offset if exact else frame.offset - 1)
        if found is None:
            out.append(frame)
        else:
            expanded = index > 0 and stack.frames[index - 1].inlined
            out += frames_of(frame, found if not expanded else replace(found, inlined=()))
        if not frame.inlined:
            exact = frame.function in _TRAMPOLINES
    return replace(stack, frames=tuple(out))


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file with names for one module. `elf` is the module's own file or its debug file."""

    elf: ElfFile
    lines: LineReader

    @property
    def has_names(self) -> bool:
        try:
            return self.lines.has_any or len(self.elf.symbols()) > 0
        except BadElf:
            return False

    def name(self, vaddr: int, budget: WaitBudget) -> Named:
        self.lines.look_up((vaddr,), budget)
        return named(function_at(self.elf, vaddr), self.lines.at(vaddr))


class Finder:
    """Files by build-id: in `folders` (a .build-id tree, a folder or any folder tree of files, or one file), below
    `roots` (a container's or a machine's files, where the module has the path that it had in the case), and in this
    machine's own places. Nothing is fetched."""

    def __init__(self, folders: Sequence[Path] = (), roots: Sequence[Path] = ()) -> None:
        self._folders = tuple(folders)
        self._roots = (*roots, Path("/"))
        self._by_id: dict[str, Path] | None = None

    def find(self, path: str, build_id: str) -> NamedFile | None:
        """The best file for the module: one with lines where there is one. None: no file with that build-id has
        names."""
        trees = [tree for folder in self._folders if folder.is_dir() for tree in (folder, folder.parent)]
        inside = [partial(open_in_root, root) for root in self._roots]
        debug = debug_files_for(path, (*trees, *DEBUG_ROOTS), inside=inside)
        best: NamedFile | None = None
        for stream in self._candidates(path, build_id, debug):
            found = _open(stream, build_id, debug)
            if found is not None and found.lines.has_any:
                return found
            best = best or found
        return best if best is not None and best.has_names else None

    def _candidates(self, path: str, build_id: str, debug: DebugFiles) -> Iterator[AbstractContextManager[BinaryIO]]:
        for root in self._roots:
            yield open_in_root(root, path)
        yield from debug(build_id, None)
        if self._by_id is None:
            self._by_id = dict(_build_ids(self._folders))
        if build_id in self._by_id:
            yield open_regular(self._by_id[build_id])


def _open(stream: AbstractContextManager[BinaryIO], build_id: str, debug: DebugFiles) -> NamedFile | None:
    try:
        with stream as opened:
            elf = ElfFile(opened, debug_files=debug)
        return NamedFile(elf, LineReader(elf)) if elf.build_id() == build_id else None
    except (OSError, BadElf, ValueError):
        return None


def _build_ids(places: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """(build-id, file) of the ELF files there; of two with the same one, the later is what counts."""
    for path in _files(places):
        try:
            with open_regular(path) as stream:
                build_id = ElfFile(stream).build_id()
        except (OSError, BadElf):
            continue
        if build_id is not None:
            yield build_id, path


def _files(places: Sequence[Path]) -> Iterator[Path]:
    seen = 0
    for place in places:
        if place.is_file():
            yield place
        for folder, _, names in os.walk(place):
            for name in sorted(names):
                seen += 1
                if seen > _MAX_FILES:
                    return
                yield Path(folder, name)
