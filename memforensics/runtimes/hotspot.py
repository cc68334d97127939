"""HotSpot, OpenJDK's virtual machine: its heap, code cache, metaspace and the collector's tables, read from outside.

libjvm describes itself to debuggers (src/hotspot/share/runtime/vmStructs.hpp): `gHotSpotVMStructs` is a table of {type,
field, type of the field, is it static, offset, address}, ended by an entry without names. This works for JDK 8 to 24
with any collector; parts without an entry are omitted. Metaspace has no entry and is found from JDK 16 on: every class
points into it, and since JEP 387 it consists of root chunks of 4 MiB, aligned to their size.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from memforensics.case.model import OwnerMark
from memforensics.errors import MemforensicsError
from memforensics.runtimes.reading import Reading, Run
from memforensics.runtimes.scene import Scene
from memforensics.symbols.address_space import AddressSpace, MappedModule
from memforensics.text import basename
from memforensics.units import KIB, MIB

Kind = Literal["jvm-heap", "jvm-code", "jvm-metaspace", "jvm-gc"]

_MAX_ENTRIES = 8192
_MAX_CLASSES = 10_000
_MAX_TABLE_STRINGS = 4 * MIB
_ROOT_CHUNK = 4 * MIB  # metaspace/chunklevel.hpp, MAX_CHUNK_BYTE_SIZE; 16 MiB, a multiple, from JDK 22
_HEAP_OBJECT = 2 * KIB  # bytes of the CollectedHeap that are searched for pointers to the collector's parts
_PART = 256
_PAGE = 4096
_FIRST_WITH_ROOT_CHUNKS = 16  # JEP 387


def recognise(scene: Scene) -> Iterator[OwnerMark]:
    """The anonymous memory of each part of the virtual machine. An uncertain region counts only if it begins where a
    mapping begins and contains no named mapping."""
    mappings = scene.snapshot.mappings
    if not any(_is_libjvm(basename(path)) for path in scene.modules):
        return
    try:
        space = AddressSpace(scene.process)
    except MemforensicsError:
        return
    anonymous = [(m.start, m.end) for m in mappings if m.path == "" and not m.shared]
    starts = {start for start, _ in anonymous}
    named = [(m.start, m.end) for m in mappings if m.path != ""]
    for module in space.modules:
        if not _is_libjvm(module.name):
            continue
        for kind, (start, end), is_certain in HotSpot(scene.reader, _Symbols(space, module), space.code).regions():
            if not is_certain and (start not in starts or any(a < end and start < b for a, b in named)):
                continue
            for first, last in anonymous:
                if first < end and start < last:
                    detail = f"by libjvm's table: from {start:#x}"
                    yield OwnerMark(start=max(first, start), end=min(last, end), kind=kind, detail=detail)


def _is_libjvm(name: str) -> bool:
    return name.startswith("libjvm.so")


class _Symbols:
    """Looks up the run-time addresses of one module's symbols."""

    def __init__(self, space: AddressSpace, module: MappedModule) -> None:
        self._space, self._module = space, module

    def __call__(self, name: str) -> int | None:
        elf = self._space.elf(self._module)
        symbol = elf.find_symbol(name) if elf is not None else None
        return self._space.address(self._module, symbol.start) if symbol is not None else None


@dataclass(slots=True)
class HotSpot:
    """One virtual machine. `symbol`: gives the address of a symbol of libjvm, or None. `constant`: reads constant bytes
    of libjvm from its file, because their pages need not be present in the process."""

    reading: Reading
    symbol: Callable[[str], int | None]
    constant: Callable[[int, int], bytes | None]
    _fields: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)  # -> (offset, address if static)
    _pages: dict[int, bytes | None] = field(default_factory=dict)

    def regions(self) -> Iterator[tuple[Kind, Run, bool]]:
        """(kind, reserved range, is it certain). The ranges need not be resident or accessible. An uncertain one is
        just a pair of page addresses."""
        self._fields = self._table()
        heap = self._heap()
        if heap is not None:
            yield "jvm-heap", heap, True
        for run in self._code():
            yield "jvm-code", run, True
        for start in sorted(self._metaspace()):
            yield "jvm-metaspace", (start, start + _ROOT_CHUNK), True
        for run in self._card_table():
            yield "jvm-gc", run, True
        for run in sorted(self._g1_tables()):
            yield "jvm-gc", run, False

    # --- the table

    def _table(self) -> dict[tuple[str, str], tuple[int, int]]:
        base, stride = self._exported("gHotSpotVMStructs"), self._exported("gHotSpotVMStructEntryArrayStride")
        offsets = [self._exported(f"gHotSpotVMStructEntry{name}Offset")
                  for name in ("TypeName", "FieldName", "IsStatic", "Offset", "Address")]  # fmt: skip
        if not base or not stride or not 40 <= stride <= 128:
            return {}
        raw = []
        for index in range(_MAX_ENTRIES):
            entry = self.reading.read(base + index * stride, stride)
            if entry is None or max(position or 0 for position in offsets) + 8 > stride:
                return {}
            type_name, field_name, is_static, offset, address = (
                int.from_bytes(entry[position or 0 : (position or 0) + 8], "little") for position in offsets
            )
            if not type_name:
                break
            raw.append((type_name, field_name, offset, address if is_static & 0xFFFFFFFF else 0))
        names = self._strings([pointer for entry_ in raw for pointer in entry_[:2]])
        return {(names(t), names(f)): (offset, address) for t, f, offset, address in raw}

    def _exported(self, name: str) -> int | None:
        address = self.symbol(name)
        return self._word(address) if address is not None else None

    def _strings(self, pointers: list[int]) -> Callable[[int], str]:
        """The strings at these addresses, in one read: they lie together in libjvm's constants."""
        known = [pointer for pointer in pointers if pointer]
        low, high = min(known, default=0), max(known, default=0)
        data = (self.constant(low, high - low) or b"") if high - low <= _MAX_TABLE_STRINGS else b""
        data += self.constant(high, 64) or b""

        def string(pointer: int) -> str:
            begin = pointer - low
            end = data.find(b"\0", begin) if begin >= 0 else -1
            return data[begin:end].decode("ascii", "replace") if end > begin else ""

        return string

    # --- its parts

    def _heap(self) -> Run | None:
        heap, reserved = self._static("Universe", "_collectedHeap"), self._offset("CollectedHeap", "_reserved")
        if not heap or reserved is None:
            return None
        start, words = self._word(heap + reserved), self._word(heap + reserved + 8)  # MemRegion: start, size in words
        return (start, start + 8 * words) if start and words and words < 1 << 44 else None

    def _code(self) -> Iterator[Run]:
        heaps = self._static("CodeCache", "_heaps")
        data = self._offset("GrowableArray<int>", "_data")
        if heaps and data is not None:
            count, array = (self._word(heaps) or 0) & 0xFFFFFFFF, self._word(heaps + data)
            code_heaps = [self._word(array + 8 * i) for i in range(min(count, 8))] if array else []
        else:
            code_heaps = [self._static("CodeCache", "_heap")]  # JDK 8
        for heap in code_heaps:
            for part in ("_memory", "_segmap"):
                run = self._virtual_space(heap, self._offset("CodeHeap", part))
                if run is not None:
                    yield run

    def _virtual_space(self, owner: int | None, offset: int | None) -> Run | None:
        low, high = self._offset("VirtualSpace", "_low_boundary"), self._offset("VirtualSpace", "_high_boundary")
        if not owner or offset is None or low is None or high is None:
            return None
        start, end = self._word(owner + offset + low), self._word(owner + offset + high)
        return (start, end) if start and end and start < end else None

    def _metaspace(self) -> set[int]:
        """The root chunks that contain classes and their constants, without the shared archive, which is a file."""
        major = self._field("Abstract_VM_Version", "_vm_major_version")
        version = (self._word(major[1]) or 0) & 0xFFFFFFFF if major is not None and major[1] else 0
        if version < _FIRST_WITH_ROOT_CHUNKS or ("CodeCache", "_heap") in self._fields:
            return set()
        loader = self._static("ClassLoaderDataGraph", "_head")
        next_loader, classes = self._offset("ClassLoaderData", "_next"), self._offset("ClassLoaderData", "_klasses")
        next_class, constants = self._offset("Klass", "_next_link"), self._offset("InstanceKlass", "_constants")
        shared = [self._static("MetaspaceObj", f"_shared_metaspace_{end}") or 0 for end in ("base", "top")]
        found: set[int] = set()
        classes_left = _MAX_CLASSES
        while loader and classes_left and next_loader is not None and classes is not None:
            klass = self._word(loader + classes)
            while klass and classes_left and next_class is not None:
                classes_left -= 1
                for address in (klass, self._word(klass + constants) if constants is not None else None):
                    if address and not shared[0] <= address < shared[1]:
                        found.add(address & -_ROOT_CHUNK)
                klass = self._word(klass + next_class)
            classes_left -= bool(classes_left)
            loader = self._word(loader + next_loader)
        return {start for start in found if self._is_root_chunk(start, shared)}

    def _is_root_chunk(self, start: int, shared: list[int]) -> bool:
        return start > 0 and not (start < shared[1] and shared[0] < start + _ROOT_CHUNK)

    def _card_table(self) -> Iterator[Run]:
        barrier, table = self._static("BarrierSet", "_barrier_set"), self._offset("CardTableBarrierSet", "_card_table")
        size, cards = self._offset("CardTable", "_byte_map_size"), self._offset("CardTable", "_byte_map")
        card_table = self._word(barrier + table) if barrier and table is not None else None
        if card_table and size is not None and cards is not None:
            start, length = self._word(card_table + cards), self._word(card_table + size)
            if start and length and start % _PAGE == 0 and length < 1 << 40:
                yield start, start - (-length // _PAGE) * _PAGE

    def _g1_tables(self) -> set[Run]:
        """G1's bitmaps and other tables: pairs of _low_boundary and _high_boundary (G1PageBasedVirtualSpace) in the
        objects that the CollectedHeap points to."""
        heap = self._static("Universe", "_collectedHeap")
        if not heap or ("G1CollectedHeap", "_hrm") not in self._fields:
            return set()
        parts = (self._word(at) for at in range(heap, heap + _HEAP_OBJECT, 8))
        return {run for part in parts if part and not part & 7 for run in self._pairs(part)}

    def _pairs(self, part: int) -> Iterator[Run]:
        words = [self._word(part + offset) or 0 for offset in range(0, _PART, 8)]
        for low, high in pairwise(words):
            if _PAGE < low < high < 1 << 47 and low % _PAGE == high % _PAGE == 0 and high - low <= 1 << 40:
                yield low, high

    # --- reading

    def _field(self, type_name: str, name: str) -> tuple[int, int] | None:
        return self._fields.get((type_name, name))

    def _offset(self, type_name: str, name: str) -> int | None:
        found = self._field(type_name, name)
        return found[0] if found is not None else None

    def _static(self, type_name: str, name: str) -> int | None:
        found = self._field(type_name, name)
        return self._word(found[1]) if found is not None and found[1] else None

    def _word(self, address: int) -> int | None:
        """Pages are cached, because the fields of neighbouring classes lie close together."""
        page, offset = address & -_PAGE, address % _PAGE
        if offset > _PAGE - 8:
            data = self.reading.read(address, 8)
            return int.from_bytes(data, "little") if data is not None else None
        if page not in self._pages:
            self._pages[page] = self.reading.read(page, _PAGE) if 0 < page < 1 << 47 else None
        cached = self._pages[page]
        return int(struct.unpack_from("<Q", cached, offset)[0]) if cached is not None else None
