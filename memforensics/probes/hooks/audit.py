"""The audit itself: every GOT slot of a watched function against its binding, every entry against the file."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from memforensics.case.model import Hook, HookAudit, Loss, Module
from memforensics.probes.hooks.binding import Loaded, read_scope
from memforensics.probes.hooks.patch import Landing, follow, is_breakpoint
from memforensics.probes.hooks.watched_functions import NAMES, WATCHED, canonical
from memforensics.symbols.address_space import AddressSpace, MappedModule
from memforensics.symbols.elf.reader import BadElf, Reloc
from memforensics.symbols.elf.versions import SpaceVersions
from memforensics.symbols.names.demangle import demangle
from memforensics.target import Process
from memforensics.target.memory import Memory, Unreadable, read_u64

ENTRY_BYTES = 24  # longest patch known here: mov r11, imm64; jmp r11 behind an endbr64
_X86_64 = 62
_GLOB_DAT, _JUMP_SLOT = 6, 7  # R_X86_64_*: linker's own slots; R_X86_64_64 is the program's data, free to change
_UPROBE_TRAMPOLINE = "[uprobes-trampoline]"  # kernel 6.18+, arch/x86/kernel/uprobes.c

EntryWord = Literal["unchanged", "breakpoint", "uprobe", "patched", "unread"]


@dataclass(frozen=True, slots=True)
class EntryState:
    """The first bytes of a function in memory against its file. `landing`: where a patch leads."""

    word: EntryWord
    address: int
    original: bytes = b""
    live: bytes = b""
    landing: Landing | None = None


def audit_hooks(process: Process, space: AddressSpace) -> tuple[list[Hook], HookAudit, list[Module], list[Loss]]:
    """The hooks of one process, what was looked at, the modules that play a part (with versions), and what was not
    seen. TargetGone, PermissionNeeded."""
    return _Audit(process, space).run()


def entry_state(process: Process, space: AddressSpace, module: MappedModule, vaddr: int, size: int = 0) -> EntryState:
    """The entry of one function: may a breakpoint be set there?"""
    return _entry(process.memory, space, module, vaddr, size)


class _Audit:
    def __init__(self, process: Process, space: AddressSpace) -> None:
        self.process, self.space = process, space
        self.memory: Memory = process.memory
        auxv = process.read_bytes("auxv")
        self.scope, self.unread = read_scope(space, self.memory, auxv)
        self.versions = SpaceVersions(space)
        self.got_slots = self.entries = 0
        self.losses: list[Loss] = []
        self.parts: dict[int, MappedModule] = {}  # modules that play a part, by start

    def run(self) -> tuple[list[Hook], HookAudit, list[Module], list[Loss]]:
        hooks = [*self._inline(), *self._got(), *self._preload()]
        if self.unread:
            why = next((w for m in self.unread if (w := self.space.why_no_elf(m))), "")
            self._lose(f"mapped files that could not be read ({why})", len(self.unread), "run as root")
        foreign = sum(one.elf.machine != _X86_64 for one in self.scope.objects)
        if foreign:
            self._lose("objects for another machine than x86-64: not read here", foreign)
        audit = HookAudit(
            pid=self.process.pid,
            t_ns=time.monotonic_ns(),
            functions=WATCHED,
            objects_read=len(self.scope.objects),
            objects_unread=len(self.unread),
            got_slots=self.got_slots,
            entries_compared=self.entries,
        )
        return hooks, audit, self._modules(), self.losses

    # --- code

    def _inline(self) -> Iterator[Hook]:
        """Patched entries. All names of one entry are one function."""
        for one in self.scope.objects:
            if one.elf.machine != _X86_64:
                continue
            for vaddr, (name, size) in self._entries(one).items():
                state = _entry(self.memory, self.space, one.module, vaddr, size)
                if state.word == "unread":
                    self._lose("function entries that could not be compared", 1)
                    continue
                self.entries += 1
                if state.word == "patched":
                    yield self._patched(name, one, state)
                elif state.word != "unchanged":
                    what = "int3 of a debugger or uprobe" if state.word == "breakpoint" else "uprobe"
                    self._lose(
                        f"no hook, but an {what} stands at the entry of {one.module.name}!{name}",
                        1,
                        "end the tracer that set it",
                    )

    def _entries(self, one: Loaded) -> dict[int, tuple[str, int]]:
        """Address in the file -> (name, size) of the watched functions that it defines for others (or, a program
        without a dynamic linker, for itself)."""
        out: dict[int, tuple[str, int]] = {}
        try:
            names = [name for name in NAMES if one.elf.defines(name)] if one.needed or one.elf.soname else NAMES
            for name, symbol in one.elf.find_symbols(names).items():
                known = out.get(symbol.start)
                if known is None or canonical(name) == name:
                    out[symbol.start] = (canonical(name), symbol.size)
        except BadElf as error:
            self._lose(f"symbols of {one.module.name} ({error.what})", 1)
        return out

    def _patched(self, name: str, one: Loaded, state: EntryState) -> Hook:
        landing = state.landing
        chain = landing.hops if landing is not None else (state.address,)
        self.parts[one.module.start] = one.module
        return self._hook(
            name,
            "inline",
            target=landing.address if landing is not None and not landing.in_progress else None,
            home=one,
            chain=chain[1:],
            patched_in=one.module.path,
            objects=(one.module.path,),
            state=state,
        )

    # --- slots

    def _got(self) -> Iterator[Hook]:
        """Slots that lead elsewhere than the dynamic linker would have bound them."""
        groups = self._foreign_slots()
        if any(self.space.find(target) is None for _, target in groups):  # a library that came meanwhile?
            self.space.refresh()
            self.scope, self.unread = read_scope(self.space, self.memory, self.process.read_bytes("auxv"))
            groups = self._foreign_slots()
        for (name, target), objects in groups.items():
            landing = follow(self.memory, target, self._in_file)
            chain = landing.hops if landing is not None and not self._in_file(target) else (target,)
            home = self.scope.expected(name)
            yield self._hook(
                name, "got", target=chain[-1], home=home[0] if home else None, chain=chain, objects=tuple(objects)
            )

    def _foreign_slots(self) -> dict[tuple[str, int], list[str]]:
        """(function, where its slots lead) -> paths of the objects."""
        self.got_slots = 0
        groups: dict[tuple[str, int], list[str]] = {}
        for one in self.scope.objects:
            for slot, value in self._slots(one):
                self.got_slots += 1
                if self._is_binding(one, slot, value):
                    continue
                objects = groups.setdefault((canonical(slot.symbol), value), [])
                if one.module.path not in objects:
                    objects.append(one.module.path)
        return groups

    def _slots(self, one: Loaded) -> Iterator[tuple[Reloc, int]]:
        """An object's GOT slots of watched functions, with their live values."""
        if one.elf.machine != _X86_64:
            return
        try:
            slots = [slot for slot in one.elf.relocations(NAMES) if slot.type in (_GLOB_DAT, _JUMP_SLOT)]
        except BadElf as error:
            self._lose(f"relocations of {one.module.name} ({error.what})", 1)
            return
        for slot in slots:
            try:
                value = read_u64(self.memory, slot.slot_vaddr + one.bias)
            except Unreadable:
                self._lose("GOT slots that could not be read", 1)
                continue
            yield slot, value

    def _is_binding(self, one: Loaded, slot: Reloc, value: int) -> bool:
        """Whether the slot of `one` holds what the dynamic linker may have put there."""
        name = slot.symbol
        if value == 0 or self._is_unbound(one, slot, value):
            return True
        if one.covers(value):  # bound to itself (-Bsymbolic, a program's own malloc), or its PLT entry
            return one.elf.defines(name) or self._in_plt(one, value)
        expected = self.scope.expected(name)
        if expected is not None and expected[0].covers(value):
            return True  # any version of it, and whatever its IFUNC chose
        at = self.space.find(value)
        owner = next((o for o in self.scope.objects if at is not None and o.module.start == at[0].start), None)
        if owner is None:
            return False
        if owner is self.scope.objects[0] and self._in_plt(owner, value):
            return True  # a program that takes its address: its PLT entry is the function's address for all
        if not self._defines_at(owner, name, value):
            return False
        # Its own or its dependencies' scope, or a symbol that the program itself does not have.
        return expected is None or bool(owner.names & self.scope.closure(one))

    @staticmethod
    def _is_unbound(one: Loaded, slot: Reloc, value: int) -> bool:
        """Not bound yet: it holds what the file has there (moved by the load bias: the lazy way into its own PLT; as it
        is: the object is just being loaded)."""
        try:
            in_file = int.from_bytes(one.elf.read_at_vaddr(slot.slot_vaddr, 8), "little")
        except BadElf:
            return False
        return value in (in_file, in_file + one.bias)

    @staticmethod
    def _defines_at(owner: Loaded, name: str, value: int) -> bool:
        if owner.address_of(name) == value:
            return True
        try:  # another version of the symbol
            symbol = owner.elf.symbol_at(value - owner.bias) if owner.elf.defines(name) else None
        except BadElf:
            return False
        return symbol is not None and canonical(symbol.name.partition("@")[0]) == canonical(name)

    @staticmethod
    def _in_plt(owner: Loaded, value: int) -> bool:
        vaddr = value - owner.bias
        plts = (owner.elf.section(name) for name in (".plt", ".plt.sec", ".plt.got"))
        return any(plt is not None and plt.vaddr <= vaddr < plt.vaddr + plt.size for plt in plts)

    # --- preload

    def _preload(self) -> Iterator[Hook]:
        """Functions that LD_PRELOAD takes from the library that the program is linked with."""
        for name in WATCHED if self.scope.preloaded else ():
            first = self.scope.expected(name)
            behind = self.scope.behind_preload(name)
            if first is None or behind is None or first[0] not in self.scope.preloaded:
                continue
            yield self._hook(
                name,
                "preload",
                target=first[1],
                chain=(first[1],),
                objects=(behind[0].module.path,),
                target_function=name,
            )

    # --- making a Hook

    def _hook(
        self,
        name: str,
        mechanism: Literal["got", "inline", "preload"],
        *,
        target: int | None,
        home: Loaded | None = None,
        chain: tuple[int, ...],
        objects: tuple[str, ...],
        patched_in: str | None = None,
        state: EntryState | None = None,
        target_function: str | None = None,
    ) -> Hook:
        at = self.space.find(target) if target is not None else None
        owner = at[0] if at is not None else None
        version = self.versions.of(owner) if owner is not None else None
        if owner is not None:
            self.parts[owner.start] = owner
        return Hook(
            pid=self.process.pid,
            function=name,
            mechanism=mechanism,
            owner_path=owner.path if owner is not None else None,
            owner_version=version[0] if version else None,
            owner_version_how=version[1] if version else None,
            owner_build_id=_build_id(self.space, owner),
            target_function=target_function or (self._symbol(target) if target is not None else None),
            target_address=target,
            patched_in=patched_in,
            chain=(*([f"{home.module.name}!{name}"] if home else []), *(self._step(address) for address in chain)),
            objects=objects,
            original_bytes=state.original.hex() if state is not None else None,
            live_bytes=state.live.hex() if state is not None else None,
        )

    def _in_file(self, address: int) -> bool:
        at = self.space.find(address)
        return at is not None and at[0].path.startswith("/")

    def _symbol(self, address: int) -> str | None:
        at = self.space.find(address)
        elf = self.space.elf(at[0]) if at is not None else None
        if at is None or elf is None:
            return None
        try:
            symbol = elf.symbol_at(at[1])
        except BadElf:
            return None
        return demangle(symbol.name.partition("@")[0]) if symbol is not None else None

    def _step(self, address: int) -> str:
        """`libc.so.6!munmap`; `libx.so+0x1234` without a symbol; the address alone in memory of no file."""
        at = self.space.find(address)
        if at is None:
            return f"{address:#x}"
        name = self._symbol(address)
        return f"{at[0].name}!{canonical(name)}" if name else f"{at[0].name}+{at[1]:#x}"

    def _modules(self) -> list[Module]:
        """The owners, the patched, and every other module that carries a version of its own and stands in an owner's
        folder: parts of one package."""
        folders = {module.path.rpartition("/")[0] for module in self.parts.values()}
        out = []
        for one in self.scope.objects:
            module = one.module
            if module.start not in self.parts and module.path.rpartition("/")[0] not in folders:
                continue
            version = self.versions.of(module)
            if version is None and module.start not in self.parts:
                continue
            out.append(
                Module(
                    pid=self.process.pid,
                    path=module.path,
                    start=module.start,
                    build_id=_build_id(self.space, module),
                    version=version[0] if version else None,
                    version_how=version[1] if version else None,
                )
            )
        return out

    def _lose(self, what: str, count: int, reduce: str = "") -> None:
        for index, loss in enumerate(self.losses):
            if loss.what == what:
                self.losses[index] = Loss(probe="hooks", what=what, count=loss.count + count, reduce=reduce)
                return
        self.losses.append(Loss(probe="hooks", what=what, count=count, reduce=reduce))


def _build_id(space: AddressSpace, module: MappedModule | None) -> str | None:
    elf = space.elf(module) if module is not None else None
    try:
        return elf.build_id() if elf is not None else None
    except BadElf:
        return None


def _entry(memory: Memory, space: AddressSpace, module: MappedModule, vaddr: int, size: int) -> EntryState:
    """A jump within the entry's own module is no hook (code that the linker or the CPU's features changed)."""
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
    landing = follow(memory, address, _is_foreign_file(space, module))
    if landing is not None and _lands_on_trampoline(space, landing):
        return EntryState("uprobe", address, original, live, landing)
    return EntryState("patched", address, original, live, landing)


def _is_foreign_file(space: AddressSpace, home: MappedModule) -> Callable[[int], bool]:
    def test(address: int) -> bool:
        at = space.find(address)
        return at is not None and at[0].path.startswith("/") and at[0].start != home.start

    return test


def _lands_on_trampoline(space: AddressSpace, landing: Landing) -> bool:
    at = space.find(landing.address)
    return at is not None and at[0].path == _UPROBE_TRAMPOLINE
