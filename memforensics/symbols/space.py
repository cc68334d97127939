"""The mapped modules of one process: from a pc to the file, the address in it, its symbols and its unwind rules."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from memforensics.case.model import Mapping
from memforensics.symbols.cfi import Cfi, Rule
from memforensics.symbols.elf import ElfFile
from memforensics.target.memory import Memory
from memforensics.target.parse import ParsedMaps


class MappedProcess(Protocol):
    """What a space needs of a process: `target.Process` is one, `RecordedProcess` another."""

    def maps(self) -> ParsedMaps: ...
    def open_mapped(self, mapping: Mapping) -> AbstractContextManager[BinaryIO]: ...
    @property
    def memory(self) -> Memory: ...


@dataclass(frozen=True)
class RecordedProcess:
    """A process made of parsed mappings and an opener: for tests, and for cases made elsewhere."""

    mappings: Sequence[Mapping]
    open_mapped: Callable[[Mapping], AbstractContextManager[BinaryIO]]
    memory: Memory

    def maps(self) -> ParsedMaps:
        return ParsedMaps(tuple(self.mappings))


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
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class SpaceChange:
    came: tuple[MappedModule, ...] = ()
    went: tuple[MappedModule, ...] = ()
    changed: tuple[tuple[MappedModule, MappedModule], ...] = ()  # another file at the same start: (before, now)

    def __bool__(self) -> bool:
        return bool(self.came or self.went or self.changed)


class AddressSpace:
    """Modules by address. Files are opened at the first use and shared between the spaces of all processes.

    The constructor and `refresh` raise what reading maps raises (TargetGone, PermissionNeeded); look-ups do not raise:
    a file that cannot be opened or parsed has no ELF, and `why_no_elf` says why.
    """

    def __init__(self, process: MappedProcess) -> None:
        raise NotImplementedError

    @property
    def modules(self) -> tuple[MappedModule, ...]:
        """By rising start."""
        raise NotImplementedError

    def refresh(self) -> SpaceChange:
        """Reads maps again."""
        raise NotImplementedError

    def find(self, pc: int) -> tuple[MappedModule, int] | None:
        """The module and the address in its file (file offset instead, when its ELF cannot be read).
        None: not in a module (JIT code, or maps are older than the mapping: refresh)."""
        raise NotImplementedError

    def executable(self, pc: int) -> bool:
        """Whether an executable mapping, a module's or anonymous, covers it."""
        raise NotImplementedError

    def module_named(self, name: str) -> MappedModule | None:
        """By file name (`libc.so.6`) or whole path; the lowest where several are."""
        raise NotImplementedError

    def elf(self, module: MappedModule) -> ElfFile | None:
        raise NotImplementedError

    def why_no_elf(self, module: MappedModule) -> str | None:
        raise NotImplementedError

    def cfi(self, module: MappedModule) -> Cfi | None:
        raise NotImplementedError

    def bias(self, module: MappedModule) -> int | None:
        """run-time address = address in the file + bias. None without an ELF."""
        raise NotImplementedError

    def address(self, module: MappedModule, vaddr: int) -> int | None:
        """The run-time address of an address in the file."""
        raise NotImplementedError

    def rule(self, pc: int) -> Rule | None:
        """The CFI rule at a run-time pc (already lowered by 1 for a return address)."""
        raise NotImplementedError
