"""Inline patches: the code at the entry of each watched function against its file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from memforensics.case.model import Hook
from memforensics.probes.hooks.binding import Loaded
from memforensics.probes.hooks.patch import Landing, follow, is_breakpoint
from memforensics.probes.hooks.state import Audit
from memforensics.probes.hooks.watched_functions import NAMES, canonical
from memforensics.symbols.address_space import AddressSpace, MappedModule
from memforensics.symbols.elf.reader import BadElf
from memforensics.target import Process
from memforensics.target.memory import Memory, Unreadable

ENTRY_BYTES = 24  # the longest known patch: mov r11, imm64; jmp r11 after an endbr64
_UPROBE_TRAMPOLINE = "[uprobes-trampoline]"  # kernel 6.18+, arch/x86/kernel/uprobes.c

State = Literal["unchanged", "breakpoint", "uprobe", "patched", "unread"]


@dataclass(frozen=True, slots=True)
class EntryState:
    """The first bytes of a function in memory and in its file. `landing`: where a patch leads."""

    state: State
    address: int
    original: bytes = b""
    live: bytes = b""
    landing: Landing | None = None


def entry_state(process: Process, space: AddressSpace, module: MappedModule, vaddr: int, size: int = 0) -> EntryState:
    """The entry of one function, to decide whether a breakpoint may be set there."""
    return _entry(process.memory, space, module, vaddr, size)


def find_inline(audit: Audit) -> Iterator[Hook]:
    """Patched entries. Several names of one entry are one function."""
    for one in audit.objects:
        for vaddr, (name, size) in _entries(audit, one).items():
            found = _entry(audit.memory, audit.space, one.module, vaddr, size)
            if found.state == "unread":
                audit.lose("function entries that could not be compared", 1)
                continue
            audit.entries += 1
            if found.state == "patched":
                yield _patched(audit, name, one, found)
            elif found.state != "unchanged":
                what = "int3 of a debugger or uprobe" if found.state == "breakpoint" else "uprobe"
                place = f"{one.module.name}!{name}"
                audit.lose(f"no hook, but an {what} stands at the entry of {place}", 1, "end the tracer that set it")


def _entries(audit: Audit, one: Loaded) -> dict[int, tuple[str, int]]:
    """Address in the file -> (name, size) of the watched functions that the object exports. For a program without a
    dynamic linker: all that it defines."""
    out: dict[int, tuple[str, int]] = {}
    try:
        names = [name for name in NAMES if one.elf.defines(name)] if one.needed or one.elf.soname else NAMES
        for name, symbol in one.elf.find_symbols(names).items():
            known = out.get(symbol.start)
            if known is None or canonical(name) == name:
                out[symbol.start] = (canonical(name), symbol.size)
    except BadElf as error:
        audit.lose(f"symbols of {one.module.name} ({error.what})", 1)
    return out


def _patched(audit: Audit, name: str, one: Loaded, found: EntryState) -> Hook:
    landing = found.landing
    audit.involved[one.module.start] = one.module
    return audit.hook(
        name,
        "inline",
        target=landing.address if landing is not None and not landing.in_progress else None,
        home=one,
        chain=landing.hops[1:] if landing is not None else (),
        patched_in=one.module.path,
        objects=(one.module.path,),
        original=found.original,
        live=found.live,
    )


def _entry(memory: Memory, space: AddressSpace, module: MappedModule, vaddr: int, size: int) -> EntryState:
    address, elf = space.address(module, vaddr), space.elf(module)
    if address is None or elf is None:
        return EntryState("unread", vaddr)
    original, live = b"", b""
    for length in dict.fromkeys((min(size, ENTRY_BYTES) or ENTRY_BYTES, 5)):
        try:
            original, live = elf.read_at_vaddr(vaddr, length), memory.read(address, length)
            break
        except (BadElf, Unreadable):
            continue
    if not live:
        return EntryState("unread", address)
    if original == live:
        return EntryState("unchanged", address, original, live)
    if is_breakpoint(original, live):
        return EntryState("breakpoint", address, original, live)
    landing = follow(memory, address, _is_in_another_file(space, module))
    at = space.find(landing.address) if landing is not None else None
    is_uprobe = at is not None and at[0].path == _UPROBE_TRAMPOLINE
    return EntryState("uprobe" if is_uprobe else "patched", address, original, live, landing)


def _is_in_another_file(space: AddressSpace, home: MappedModule) -> Callable[[int], bool]:
    def test(address: int) -> bool:
        at = space.find(address)
        return at is not None and at[0].path.startswith("/") and at[0].start != home.start

    return test
