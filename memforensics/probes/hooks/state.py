"""What the finders of one audit share: the loaded objects, the counts, and how a Hook is described."""

from typing import Literal

from memforensics.case.model import Hook, Loss
from memforensics.probes.hooks.binding import Loaded, read_scope
from memforensics.probes.hooks.watched_functions import canonical
from memforensics.symbols.address_space import AddressSpace, MappedModule
from memforensics.symbols.elf.reader import EM_X86_64, BadElf
from memforensics.symbols.elf.versions import SpaceVersions
from memforensics.symbols.names.demangle import demangle
from memforensics.target import Process
from memforensics.target.memory import Memory


class Audit:
    """The state of one audit. `objects`: the loaded objects whose code can be read here, which is x86-64 alone."""

    def __init__(self, process: Process, space: AddressSpace) -> None:
        self.process, self.space = process, space
        self.memory: Memory = process.memory
        self.versions = SpaceVersions(space)
        self.got_slots = self.entries = 0
        self.losses: list[Loss] = []
        self.involved: dict[int, MappedModule] = {}  # modules that own or suffer a hook, by start
        self.read_scope()

    def read_scope(self) -> None:
        self.scope, self.unread = read_scope(self.space, self.memory, self.process.read_bytes("auxv"))
        self.objects = [one for one in self.scope.objects if one.elf.machine == EM_X86_64]

    def hook(
        self,
        function: str,
        mechanism: Literal["got", "inline", "preload"],
        *,
        target: int | None,
        home: Loaded | None = None,
        chain: tuple[int, ...],
        objects: tuple[str, ...],
        patched_in: str | None = None,
        original: bytes | None = None,
        live: bytes | None = None,
        target_function: str | None = None,
    ) -> Hook:
        """A Hook. `target`: the address that gets the call. `home`: the object that defines the function. `chain`: the
        addresses that the call passes. `objects`: the paths of the objects whose calls are taken."""
        at = self.space.find(target) if target is not None else None
        owner = at[0] if at is not None else None
        version = self.versions.of(owner) if owner is not None else None
        if owner is not None:
            self.involved[owner.start] = owner
        return Hook(
            pid=self.process.pid,
            function=function,
            mechanism=mechanism,
            owner_path=owner.path if owner is not None else None,
            owner_version=version[0] if version else None,
            owner_version_how=version[1] if version else None,
            owner_build_id=self.build_id(owner) if owner is not None else None,
            target_function=target_function or (self._symbol(target) if target is not None else None),
            target_address=target,
            patched_in=patched_in,
            chain=(*([f"{home.module.name}!{function}"] if home else []), *(self._step(address) for address in chain)),
            objects=objects,
            original_bytes=original.hex() if original is not None else None,
            live_bytes=live.hex() if live is not None else None,
        )

    def in_file(self, address: int) -> bool:
        """Whether a mapped file holds the address."""
        at = self.space.find(address)
        return at is not None and at[0].path.startswith("/")

    def build_id(self, module: MappedModule) -> str | None:
        elf = self.space.elf(module)
        try:
            return elf.build_id() if elf is not None else None
        except BadElf:
            return None

    def lose(self, what: str, count: int, reduce: str = "") -> None:
        for index, loss in enumerate(self.losses):
            if loss.what == what:
                self.losses[index] = Loss(probe="hooks", what=what, count=loss.count + count, reduce=reduce)
                return
        self.losses.append(Loss(probe="hooks", what=what, count=count, reduce=reduce))

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
        """`libc.so.6!munmap`; `libx.so+0x1234` without a symbol; the bare address outside of mapped files."""
        at = self.space.find(address)
        if at is None:
            return f"{address:#x}"
        name = self._symbol(address)
        return f"{at[0].name}!{canonical(name)}" if name else f"{at[0].name}+{at[1]:#x}"
