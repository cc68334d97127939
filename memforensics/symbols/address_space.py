"""The mapped modules of one process: from a pc to the file, the address in it, its symbols and its unwind rules."""

import contextlib
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol, runtime_checkable

from memforensics.case.model import Mapping
from memforensics.errors import MemforensicsError
from memforensics.symbols.elf.byte_source import Source
from memforensics.symbols.elf.debug_files import debug_files_for
from memforensics.symbols.elf.reader import BadElf, ElfFile
from memforensics.symbols.names.jit_map import JitMap
from memforensics.symbols.names.lines import LineReader
from memforensics.symbols.unwind.cfi import Cfi, Rule
from memforensics.target.maps import ParsedMaps
from memforensics.target.memory import Memory, read_u64
from memforensics.text import basename

VDSO = "[vdso]"
_DELETED = " (deleted)"
_MAX_VDSO_BYTES = 1 << 20
_MAX_OPEN_FILES = 192


class MappedProcess(Protocol):
    """What a space needs of a process: `target.Process` is one, `RecordedProcess` another."""

    def maps(self, *, named_or_code: bool = False) -> ParsedMaps: ...
    def open_mapped(self, mapping: Mapping) -> AbstractContextManager[BinaryIO]: ...
    @property
    def memory(self) -> Memory: ...


@runtime_checkable
class LivingProcess(Protocol):
    """A running process also has a file system of its own and the map of its just-in-time compiler."""

    def open_inside(self, path: str) -> AbstractContextManager[BinaryIO]: ...
    def open_jit_map(self) -> AbstractContextManager[BinaryIO]: ...


@dataclass(frozen=True)
class RecordedProcess:
    """A process made of parsed mappings and a function that opens mapped files: for tests and recorded cases."""

    mappings: Sequence[Mapping]
    open_mapped: Callable[[Mapping], AbstractContextManager[BinaryIO]]
    memory: Memory

    def maps(self, *, named_or_code: bool = False) -> ParsedMaps:
        return ParsedMaps(tuple(m for m in self.mappings if not named_or_code or m.path or "x" in m.perms))


@dataclass(frozen=True, slots=True)
class MappedModule:
    """One file mapped at one place with at least one executable mapping. Identity: (start, device, inode, path)."""

    path: str  # as in maps, without " (deleted)"; "[vdso]"
    start: int
    end: int
    device: str
    inode: int
    mappings: tuple[Mapping, ...]

    @property
    def identity(self) -> tuple[int, str, int, str]:
        return (self.start, self.device, self.inode, self.path)

    @property
    def name(self) -> str:
        return basename(self.path)


@dataclass(frozen=True, slots=True)
class SpaceChange:
    came: tuple[MappedModule, ...] = ()
    went: tuple[MappedModule, ...] = ()
    changed: tuple[tuple[MappedModule, MappedModule], ...] = ()  # another file at the same start: (before, now)

    def __bool__(self) -> bool:
        return bool(self.came or self.went or self.changed)


def group_modules(mappings: Iterable[Mapping]) -> tuple[MappedModule, ...]:
    """Mappings of one file that belong together, where at least one is executable. A file mapped twice (dlmopen) is
    two modules: file offsets rise within one."""
    groups: list[list[Mapping]] = []
    latest: dict[tuple[str, int, str], list[Mapping]] = {}
    for mapping in sorted(mappings, key=lambda m: m.start):
        if not mapping.inode and mapping.path != VDSO:
            continue
        key = (mapping.device, mapping.inode, mapping.path)
        group = latest.get(key)
        if group is None or mapping.offset == 0 or mapping.offset < group[-1].offset:
            group = latest[key] = []
            groups.append(group)
        group.append(mapping)
    return tuple(
        MappedModule(
            path=group[0].path.removesuffix(_DELETED),
            start=group[0].start,
            end=group[-1].end,
            device=group[0].device,
            inode=group[0].inode,
            mappings=tuple(group),
        )
        for group in groups
        if any("x" in mapping.perms for mapping in group)
    )


@dataclass(frozen=True, slots=True)
class _Opened:
    elf: ElfFile
    cfi: Cfi
    lines: LineReader


class _Files:
    """Parsed files by identity. The least recently used is dropped first, because file descriptors are scarce."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._files: OrderedDict[Hashable, _Opened] = OrderedDict()

    def get(self, key: Hashable) -> _Opened | None:
        with self._lock:
            found = self._files.get(key)
            if found is not None:
                self._files.move_to_end(key)
            return found

    def put(self, key: Hashable, opened: _Opened) -> _Opened:
        with self._lock:
            opened = self._files.setdefault(key, opened)
            self._files.move_to_end(key)
            while len(self._files) > self._limit:
                self._files.popitem(last=False)
            return opened


_FILES = _Files(_MAX_OPEN_FILES)


class AddressSpace:
    """Modules by address. Files are opened at the first use and shared between the spaces of all processes.

    The constructor and `refresh` raise what reading maps raises (TargetGone, PermissionNeeded); look-ups do not raise:
    a file that cannot be opened or parsed has no ELF, and `why_no_elf` says why.
    """

    def __init__(self, process: MappedProcess) -> None:
        self._process = process
        self._living = process if isinstance(process, LivingProcess) else None
        self._jit = JitMap(self._living.open_jit_map) if self._living is not None else None
        self._keys: dict[tuple[int, str, int, str], Hashable] = {}
        self._images: dict[tuple[int, str, int, str], _Opened] = {}  # the vdso: no file, so not shared
        self._failures: dict[tuple[int, str, int, str], str] = {}
        self._biases: dict[tuple[int, str, int, str], int | None] = {}
        self._read_maps()

    def _read_maps(self) -> None:
        mappings = self._process.maps(named_or_code=True).mappings
        self._modules = group_modules(mappings)
        places = sorted((m.start, m.end, module) for module in self._modules for m in module.mappings)
        self._starts = [start for start, _, _ in places]
        self._places = [(end, module) for _, end, module in places]
        code = sorted((m.start, m.end) for m in mappings if "x" in m.perms)
        self._code_starts, self._code_ends = [start for start, _ in code], [end for _, end in code]

    @property
    def modules(self) -> tuple[MappedModule, ...]:
        """By rising start."""
        return self._modules

    def refresh(self) -> SpaceChange:
        """Reads maps again."""
        before = {module.start: module for module in self._modules}
        self._read_maps()
        now = {module.start: module for module in self._modules}
        both = before.keys() & now.keys()
        changed = tuple((before[s], now[s]) for s in sorted(both) if before[s].identity != now[s].identity)
        went = tuple(before[start] for start in sorted(before.keys() - now.keys()))
        for module in (*went, *(old for old, _ in changed)):
            for kept in (self._keys, self._images, self._biases):
                kept.pop(module.identity, None)
        self._failures.clear()
        self._biases = {identity: bias for identity, bias in self._biases.items() if bias is not None}
        return SpaceChange(tuple(now[start] for start in sorted(now.keys() - before.keys())), went, changed)

    def find(self, pc: int) -> tuple[MappedModule, int] | None:
        """The module and the address in its file, or the file offset when the ELF cannot be read.
        None: the pc is in no module (JIT code), or the maps are older than the mapping (call `refresh`)."""
        index = bisect_right(self._starts, pc) - 1
        if index < 0 or pc >= self._places[index][0]:
            return None
        module = self._places[index][1]
        bias = self.bias(module)
        if bias is not None:
            return module, pc - bias
        mapping = next(m for m in module.mappings if m.start <= pc < m.end)
        return module, pc - mapping.start + mapping.offset

    def executable(self, pc: int) -> bool:
        """Whether an executable mapping, a module's or anonymous, covers it."""
        index = bisect_right(self._code_starts, pc) - 1
        return index >= 0 and pc < self._code_ends[index]

    def jitted(self, pc: int) -> str | None:
        """The function at a pc outside all modules, from the map of the process's just-in-time compiler."""
        return self._jit.name(pc) if self._jit is not None and self.executable(pc) else None

    def module_named(self, name: str) -> MappedModule | None:
        """By file name (`libc.so.6`) or full path; the lowest one of several."""
        return next((module for module in self._modules if name in (module.name, module.path)), None)

    def elf(self, module: MappedModule) -> ElfFile | None:
        opened = self._open(module)
        return opened.elf if opened is not None else None

    def cfi(self, module: MappedModule) -> Cfi | None:
        opened = self._open(module)
        return opened.cfi if opened is not None else None

    def lines(self, module: MappedModule) -> LineReader | None:
        opened = self._open(module)
        return opened.lines if opened is not None else None

    def why_no_elf(self, module: MappedModule) -> str | None:
        """Why the module has no ELF. None: it has one."""
        self._open(module)
        return self._failures.get(module.identity)

    def _open(self, module: MappedModule) -> _Opened | None:
        identity = module.identity
        if identity in self._failures:
            return None
        opened = self._images.get(identity) or (_FILES.get(self._keys[identity]) if identity in self._keys else None)
        if opened is not None:
            return opened
        try:
            return self._open_image(module) if module.path == VDSO else self._open_file(module)
        except OSError as error:
            self._failures[identity] = error.strerror or str(error)
        except MemforensicsError as error:  # BadElf; the target gone or not ours
            self._failures[identity] = str(error)
        return None

    def _open_image(self, module: MappedModule) -> _Opened:
        size = min(module.end - module.start, _MAX_VDSO_BYTES)
        elf = ElfFile(self._process.memory.read(module.start, size))
        opened = self._images[module.identity] = _Opened(elf, Cfi(elf), LineReader(elf))
        return opened

    def _open_file(self, module: MappedModule) -> _Opened:
        with self._process.open_mapped(_first_code(module)) as stream:
            key = _file_key(stream)
            opened = _FILES.get(key) if key is not None else None
            if opened is None:
                inside = [self._living.open_inside] if self._living is not None else []
                elf = ElfFile(stream, debug_files=debug_files_for(module.path, inside=inside))
                _ = elf.debug  # opened now: the process and its file system may be gone later
                opened = _Opened(elf, Cfi(elf), LineReader(elf))
        if key is None:
            self._images[module.identity] = opened
            return opened
        self._keys[module.identity] = key
        return _FILES.put(key, opened)

    def _mapped_elf(self, module: MappedModule) -> ElfFile | None:
        """The file as it is mapped, for one that cannot be opened (deleted, and its inode is not accessible). This is
        enough to identify it, but it does not show the code before a patch."""
        try:
            return ElfFile(MappedSource(self._process.memory, module.mappings))
        except MemforensicsError:
            return None

    def build_id(self, module: MappedModule) -> str | None:
        """From the file, or from its mapped part. None: it has none, or it cannot be read."""
        elf = self.elf(module) or self._mapped_elf(module)
        try:
            return elf.build_id() if elf is not None else None
        except BadElf:
            return None

    def bias(self, module: MappedModule) -> int | None:
        """run-time address = address in the file + bias. None where no ELF header can be read."""
        try:
            return self._biases[module.identity]
        except KeyError:
            elf = self.elf(module) or self._mapped_elf(module)
            bias = _bias(elf, _first_code(module)) if elf is not None else None
            self._biases[module.identity] = bias
            return bias

    def address(self, module: MappedModule, vaddr: int) -> int | None:
        """The run-time address of an address in the file."""
        bias = self.bias(module)
        return vaddr + bias if bias is not None else None

    def rule(self, pc: int) -> Rule | None:
        """The CFI rule at a run-time pc (already lowered by 1 for a return address)."""
        found = self.find(pc)
        if found is None:
            return None
        cfi = self.cfi(found[0])
        return cfi.rule(found[1]) if cfi is not None and self.bias(found[0]) is not None else None

    def code(self, address: int, size: int) -> bytes | None:
        """The bytes of code there: from the file, so before any patch; from memory where there is no file."""
        found = self.find(address)
        try:
            if found is not None and (elf := self.elf(found[0])) is not None:
                return elf.read_at_vaddr(found[1], size)
            return self._process.memory.read(address, size)
        except MemforensicsError:
            return None

    def word(self, address: int) -> int | None:
        """A word of the live process, such as a GOT slot."""
        try:
            return read_u64(self._process.memory, address)
        except MemforensicsError:
            return None

    def extent(self, module: MappedModule, vaddr: int) -> tuple[int, int] | None:
        """[start, end) of the function around an address of the file, by its symbol or its FDE; of a part that the
        compiler split off (`name.cold`) the whole's. None: not known."""
        elf, cfi = self.elf(module), self.cfi(module)
        if elf is None or cfi is None:
            return None
        with contextlib.suppress(BadElf):
            symbol = elf.symbol_at(vaddr)
            if symbol is not None:
                whole, cold, _ = symbol.name.partition(".cold")
                symbol = (elf.find_symbol(whole) if cold else None) or symbol
                return symbol.start, symbol.start + symbol.size
        return cfi.function_range(vaddr)

    def entry(self, module: MappedModule, vaddr: int) -> int | None:
        """Where the function around an address of the file begins. None: not known."""
        extent = self.extent(module, vaddr)
        return extent[0] if extent is not None else None


class MappedSource(Source):
    """A mapped file by its offsets, from the process's memory; of parts that are not mapped there is nothing."""

    def __init__(self, memory: Memory, mappings: Sequence[Mapping]) -> None:
        self._memory, self._mappings = memory, mappings
        self.size = max(mapping.offset + mapping.size for mapping in mappings)

    def _pread(self, offset: int, size: int) -> bytes:
        for mapping in self._mappings:
            if mapping.offset <= offset and offset + size <= mapping.offset + mapping.size:
                try:
                    return self._memory.read(mapping.start + offset - mapping.offset, size)
                except MemforensicsError as error:
                    raise BadElf(str(error)) from error
        return b""


def _first_code(module: MappedModule) -> Mapping:
    return next(mapping for mapping in module.mappings if "x" in mapping.perms)


def _bias(elf: ElfFile, mapping: Mapping) -> int | None:
    """From where the code is mapped. Whole pages are mapped, so the mapping's offset may lie before the segment's."""
    for wanted in (True, False):
        for segment in elf.load_segments:
            page_start = segment.offset - segment.offset % 4096
            if segment.executable is wanted and page_start <= mapping.offset < segment.offset + segment.filesz:
                return mapping.start - (segment.vaddr + mapping.offset - segment.offset)
    return None


def _file_key(stream: BinaryIO) -> Hashable | None:
    """Device, inode, and size and time of change, which show a later write. None: not a file."""
    try:
        about = os.fstat(stream.fileno())
    except (AttributeError, OSError):
        return None
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
