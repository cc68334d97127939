"""The parts of a Java virtual machine, as libjvm's own description of itself tells them."""

from collections.abc import Iterator

from memforensics.case.model import OwnerMark, Snapshot
from memforensics.errors import MemforensicsError
from memforensics.probes.proc.claimed_ranges import Look, Run
from memforensics.runtimes.hotspot import HotSpot
from memforensics.symbols.address_space import AddressSpace, MappedModule
from memforensics.target import Process


def jvm(look: Look, process: Process, snapshot: Snapshot) -> Iterator[OwnerMark]:
    """Its heap, code cache, metaspace and collector's tables, where those are anonymous memory. What is told by its
    form alone must begin where a mapping does, and nothing with a name may lie in it."""
    if not any(m.path.rpartition("/")[2].startswith("libjvm.so") for m in snapshot.mappings):
        return
    try:
        space = AddressSpace(process)
    except MemforensicsError:
        return
    anonymous = [(m.start, m.end) for m in snapshot.mappings if m.path == "" and not m.shared]
    starts = {start for start, _ in anonymous}
    named = [(m.start, m.end) for m in snapshot.mappings if m.path != ""]
    for module in space.modules:
        if module.name.startswith("libjvm.so"):
            for kind, (start, end), is_sure in HotSpot(look, _Symbols(space, module), space.code).regions():
                if not is_sure and (start not in starts or any(a < end and start < b for a, b in named)):
                    continue
                for first, last in _within(anonymous, start, end):
                    yield OwnerMark(start=first, end=last, kind=kind, detail=f"by libjvm's table: from {start:#x}")


class _Symbols:
    """Addresses of one library's symbols."""

    def __init__(self, space: AddressSpace, module: MappedModule) -> None:
        self._space, self._module = space, module

    def __call__(self, name: str) -> int | None:
        elf = self._space.elf(self._module)
        symbol = elf.find_symbol(name) if elf is not None else None
        return self._space.address(self._module, symbol.start) if symbol is not None else None


def _within(runs: list[Run], start: int, end: int) -> Iterator[Run]:
    for first, last in runs:
        if first < end and start < last:
            yield max(first, start), min(last, end)
