"""Watched functions that are bound elsewhere than the program asks: by a changed GOT slot, or by LD_PRELOAD."""

from collections.abc import Iterator

from memforensics.case.model import Hook
from memforensics.probes.hooks.binding import Loaded
from memforensics.probes.hooks.patch import follow
from memforensics.probes.hooks.state import Audit
from memforensics.probes.hooks.watched_functions import NAMES, WATCHED, canonical
from memforensics.symbols.elf.reader import BadElf, Reloc
from memforensics.target.memory import Unreadable, read_u64

_GLOB_DAT, _JUMP_SLOT = 6, 7  # R_X86_64_*, the linker's own slots; R_X86_64_64 is data that the program may change


def find_got(audit: Audit) -> Iterator[Hook]:
    """GOT slots that lead elsewhere than the dynamic linker would have bound them."""
    groups = _foreign_slots(audit)
    if any(audit.space.find(target) is None for _, target in groups):  # perhaps a library was just loaded
        audit.space.refresh()
        audit.read_scope()
        groups = _foreign_slots(audit)
    for (name, target), objects in groups.items():
        landing = follow(audit.memory, target, audit.in_file)
        chain = landing.hops if landing is not None and not audit.in_file(target) else (target,)
        home = audit.scope.expected(name)
        yield audit.hook(
            name, "got", target=chain[-1], home=home[0] if home else None, chain=chain, objects=tuple(objects)
        )


def find_preload(audit: Audit) -> Iterator[Hook]:
    """Functions that LD_PRELOAD takes from the library that the program is linked with."""
    scope = audit.scope
    for name in WATCHED if scope.preloaded else ():
        first = scope.expected(name)
        behind = scope.behind_preload(name)
        if first is not None and behind is not None and first[0] in scope.preloaded:
            objects = (behind[0].module.path,)
            yield audit.hook(name, "preload", target=first[1], chain=(first[1],), objects=objects, target_function=name)


def _foreign_slots(audit: Audit) -> dict[tuple[str, int], list[str]]:
    """(function, address in its slots) -> paths of the objects."""
    audit.got_slots = 0
    groups: dict[tuple[str, int], list[str]] = {}
    for one in audit.objects:
        for slot, value in _slots(audit, one):
            audit.got_slots += 1
            if not _is_binding(audit, one, slot, value):
                objects = groups.setdefault((canonical(slot.symbol), value), [])
                if one.module.path not in objects:
                    objects.append(one.module.path)
    return groups


def _slots(audit: Audit, one: Loaded) -> Iterator[tuple[Reloc, int]]:
    """The GOT slots of watched functions in one object, with their live values."""
    try:
        slots = [slot for slot in one.elf.relocations(NAMES) if slot.type in (_GLOB_DAT, _JUMP_SLOT)]
    except BadElf as error:
        audit.lose(f"relocations of {one.module.name} ({error.what})", 1)
        return
    for slot in slots:
        try:
            yield slot, read_u64(audit.memory, slot.slot_vaddr + one.bias)
        except Unreadable:
            audit.lose("GOT slots that could not be read", 1)


def _is_binding(audit: Audit, one: Loaded, slot: Reloc, value: int) -> bool:
    """Whether the dynamic linker may have put the value into the slot of `one`."""
    name, scope = slot.symbol, audit.scope
    if value == 0 or _is_unbound(one, slot, value):
        return True
    if one.covers(value):  # bound to itself (-Bsymbolic, a program's own malloc), or to its PLT entry
        return one.elf.defines(name) or _in_plt(one, value)
    expected = scope.expected(name)
    if expected is not None and expected[0].covers(value):
        return True  # any version of the symbol, or the choice of its IFUNC
    at = audit.space.find(value)
    owner = next((o for o in scope.objects if at is not None and o.module.start == at[0].start), None)
    if owner is None:
        return False
    if owner is scope.objects[0] and _in_plt(owner, value):
        return True  # the program takes the function's address: its PLT entry is that address for all objects
    if not _defines_at(owner, name, value):
        return False
    # In the scope of the object or of its dependencies, or a symbol that the program itself does not have.
    return expected is None or bool(owner.names & scope.closure(one))


def _is_unbound(one: Loaded, slot: Reloc, value: int) -> bool:
    """Whether the slot still holds the file's value: plus the load bias it leads to the PLT (lazy binding), as it is
    the object is just being loaded."""
    try:
        in_file = int.from_bytes(one.elf.read_at_vaddr(slot.slot_vaddr, 8), "little")
    except BadElf:
        return False
    return value in (in_file, in_file + one.bias)


def _defines_at(owner: Loaded, name: str, value: int) -> bool:
    if owner.address_of(name) == value:
        return True
    try:  # another version of the symbol
        symbol = owner.elf.symbol_at(value - owner.bias) if owner.elf.defines(name) else None
    except BadElf:
        return False
    return symbol is not None and canonical(symbol.name.partition("@")[0]) == canonical(name)


def _in_plt(owner: Loaded, value: int) -> bool:
    vaddr = value - owner.bias
    plts = (owner.elf.section(name) for name in (".plt", ".plt.sec", ".plt.got"))
    return any(plt is not None and plt.vaddr <= vaddr < plt.vaddr + plt.size for plt in plts)
