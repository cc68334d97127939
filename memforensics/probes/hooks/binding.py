"""Where the dynamic linker would have bound a symbol: the link map of a live process, and the default search order.

The search order (ld.so(8); glibc elf/dl-deps.c, elf/dl-lookup.c) is the program, what LD_PRELOAD names, then DT_NEEDED
breadth first. An object opened by dlopen looks there first, then in its own dependencies; with RTLD_DEEPBIND or
-Bsymbolic it looks in its own first.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from memforensics.symbols.address_space import AddressSpace, MappedModule
from memforensics.symbols.elf.reader import BadElf, ElfFile
from memforensics.target.memory import Memory, Unreadable, read_u64
from memforensics.text import basename

_DT_NULL, _DT_DEBUG = 0, 21
_PT_DYNAMIC, _PT_PHDR = 2, 6
_AT_PHDR, _AT_PHENT, _AT_PHNUM = 3, 4, 5
_MAX_OBJECTS = 20_000
_MAX_DYNAMIC = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A module with its ELF file and its load bias."""

    module: MappedModule
    elf: ElfFile
    bias: int
    needed: tuple[str, ...]
    names: frozenset[str]  # file name and soname: DT_NEEDED may have either

    def address_of(self, name: str) -> int | None:
        """Run-time address of the dynamic symbol of that name, if the object defines it."""
        try:
            if not self.elf.defines(name):
                return None
            symbol = self.elf.find_symbol(name)
        except BadElf:
            return None
        return None if symbol is None else symbol.start + self.bias

    def covers(self, address: int) -> bool:
        return self.module.start <= address < self.module.end


def load(space: AddressSpace, module: MappedModule) -> Loaded | None:
    """None if its file cannot be opened or parsed."""
    elf, bias = space.elf(module), space.bias(module)
    if elf is None or bias is None:
        return None
    try:
        soname, needed = elf.soname, elf.needed
    except BadElf:
        soname, needed = None, ()
    return Loaded(module, elf, bias, needed, frozenset({module.name, *([soname] if soname else [])}))


@dataclass(slots=True)
class Scope:
    """What the dynamic linker searches, as far as it is visible from outside.

    `objects`: all objects in load order. `startup`: the program's search list. `preloaded`: the objects in it that
    LD_PRELOAD named. Without a link map (static program, unreadable memory) the order follows DT_NEEDED alone."""

    objects: list[Loaded]
    startup: list[Loaded] = field(default_factory=list)
    preloaded: list[Loaded] = field(default_factory=list)
    _closures: dict[int, frozenset[str]] = field(default_factory=dict)
    _homes: dict[str, tuple[Loaded, int] | None] = field(default_factory=dict)

    def expected(self, name: str) -> tuple[Loaded, int] | None:
        """The first object of the program's search list that defines the name, and the address there."""
        if name not in self._homes:
            self._homes[name] = self._first(self.startup, name)
        return self._homes[name]

    def behind_preload(self, name: str) -> tuple[Loaded, int] | None:
        """The same without LD_PRELOAD."""
        return self._first([o for o in self.startup if o not in self.preloaded], name)

    def closure(self, of: Loaded) -> frozenset[str]:
        """Names of an object and of all that it needs, directly or indirectly."""
        if of.module.start not in self._closures:
            by_name = {name: o for o in self.objects for name in o.names}
            names: set[str] = set()
            waiting = [of]
            while waiting:
                one = waiting.pop()
                if names >= one.names:
                    continue
                names |= one.names
                waiting += [by_name[n] for n in one.needed if n in by_name and n not in names]
            self._closures[of.module.start] = frozenset(names)
        return self._closures[of.module.start]

    @staticmethod
    def _first(order: Iterable[Loaded], name: str) -> tuple[Loaded, int] | None:
        for one in order:
            address = one.address_of(name)
            if address is not None:
                return one, address
        return None


def read_scope(space: AddressSpace, memory: Memory, auxv: bytes) -> tuple[Scope, list[MappedModule]]:
    """The scope, and the modules whose files cannot be read."""
    loaded, unread = [], []
    for module in space.modules:
        if not module.path.startswith("/"):
            continue  # [vdso]
        one = load(space, module)
        if one is None:
            unread.append(module)
        else:
            loaded.append(one)
    order = _link_map(loaded, memory, auxv)
    program = order[0] if order else next((o for o in loaded if _is_program(o)), None)
    objects = order + [o for o in loaded if o not in order]
    if program is None:
        return Scope(objects, startup=objects), unread
    needed = _breadth_first(program, objects)
    preloaded = _preloaded(order, program)
    later = [o for p in preloaded for o in _breadth_first(p, objects)[1:]]
    startup: list[Loaded] = []
    for one in (program, *preloaded, *needed, *later):
        if one not in startup:
            startup.append(one)
    return Scope(objects, startup, preloaded), unread


def _is_program(one: Loaded) -> bool:
    try:
        return one.elf.soname is None and bool(one.needed)
    except BadElf:
        return False


def _breadth_first(program: Loaded, objects: list[Loaded]) -> list[Loaded]:
    by_name: dict[str, Loaded] = {}
    for one in objects:
        for name in one.names:
            by_name.setdefault(name, one)
    order = [program]
    for one in order:
        order += [found for name in one.needed if (found := by_name.get(basename(name))) and found not in order]
    return order


def _preloaded(order: list[Loaded], program: Loaded) -> list[Loaded]:
    """The objects that LD_PRELOAD names: elf/rtld.c maps them right after the program, before its first DT_NEEDED."""
    first = {basename(name) for name in program.needed}
    out: list[Loaded] = []
    for one in order[1:]:
        if one.names & first:
            return out
        out.append(one)
    return []  # no DT_NEEDED of the program was found: the order says nothing


def _link_map(loaded: list[Loaded], memory: Memory, auxv: bytes) -> list[Loaded]:
    """Objects in the order of r_debug's chain of link_map (glibc <link.h>; musl has the same). Empty without one."""
    try:
        head = _debug_pointer(memory, auxv)
        return _chain(loaded, memory, read_u64(memory, head + 8)) if head else []
    except (Unreadable, struct.error):
        return []


def _debug_pointer(memory: Memory, auxv: bytes) -> int | None:
    """The value of DT_DEBUG, which the dynamic linker writes into the program's dynamic section. The auxiliary vector
    (getauxval(3)) gives the address of the program headers, so no file is needed."""
    aux = dict(struct.iter_unpack("<QQ", auxv[: len(auxv) & ~15]))
    headers, count = aux.get(_AT_PHDR), aux.get(_AT_PHNUM, 0)
    if not headers or not 0 < count < 1000 or aux.get(_AT_PHENT) != 56:
        return None
    found = {
        kind: (vaddr, memsz)
        for kind, _, _, vaddr, _, _, memsz, _ in struct.iter_unpack("<IIQQQQQQ", memory.read(headers, 56 * count))
    }
    if _PT_DYNAMIC not in found:
        return None
    bias = headers - found[_PT_PHDR][0] if _PT_PHDR in found else 0
    vaddr, size = found[_PT_DYNAMIC]
    data = memory.read(vaddr + bias, min(size, _MAX_DYNAMIC) & ~15)
    for tag, value in struct.iter_unpack("<QQ", data):
        if tag == _DT_NULL:
            return None
        if tag == _DT_DEBUG:
            return int(value)
    return None


def _chain(loaded: list[Loaded], memory: Memory, address: int) -> list[Loaded]:
    """The objects of struct link_map {l_addr, l_name, l_ld, l_next, l_prev}, found by l_ld, which lies inside each."""
    order: list[Loaded] = []
    for _ in range(_MAX_OBJECTS):
        if not address:
            break
        bias, _, dynamic, following = struct.unpack("<QQQQ", memory.read(address, 32))
        found = next((o for o in loaded if o.covers(dynamic) and o.bias == bias), None)
        if found is not None and found not in order:
            order.append(found)
        address = following
    return order
