"""Learns unwind rules from misses: unwinds the copy of the stack with the full CFI, and gives the kernel each rule."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from memforensics.probes.ebpf.loader.layout import NativePc, StackEvent, pack_rule
from memforensics.symbols.address_space import AddressSpace, MappedModule
from memforensics.symbols.unwind.cfi import Rule
from memforensics.symbols.unwind.unwinder import unwind
from memforensics.target.memory import BytesMemory

PutRule = Callable[[int, bytes], bool]  # (pc to look up, packed rule) -> False when the table is full
DropRule = Callable[[int], object]

MAX_FRAMES = 256
REFRESH_INTERVAL_RATIO = 50.0  # between two readings of the mappings for an unknown pc: so many times what one takes

FREE_FAILURES = 4  # from one pc, before most of its misses are skipped
MAX_SKIPPED = 256
_MAX_FAILING = 1 << 16


class UnwoundStack(NamedTuple):
    """A miss's whole stack, leaf first, as far as user space could follow it."""

    native: tuple[NativePc, ...]
    complete: bool


@dataclass(slots=True)
class _FailingPc:
    """A pc from which nothing was learned, several times in a row."""

    failures: int = 1
    left: int = 0  # misses to skip before the next try

    def failed(self) -> None:
        self.failures += 1
        if self.failures >= FREE_FAILURES:
            self.left = min(1 << (self.failures - FREE_FAILURES), MAX_SKIPPED)

    def skip(self) -> bool:
        if not self.left:
            return False
        self.left -= 1
        return True


class RuleCache:
    """The unwind rules of one address space that the kernel has. A pc that cannot be unwound gets no rule, so its next
    miss tries again. A failed unwind costs most, because every guess is tried. So a pc that keeps failing is tried less
    and less often."""

    def __init__(self, space: AddressSpace, put: PutRule, drop: DropRule) -> None:
        self.space = space
        self._put, self._drop = put, drop
        self._known: dict[int, bytes] = {}
        self._stale = True
        self._not_before = 0.0
        self._failing: dict[int, _FailingPc] = {}
        self.misses = 0
        self.skipped = 0  # misses of failing pcs
        self.not_stored = 0  # the table was full

    @property
    def rules(self) -> int:
        return len(self._known)

    def learn(self, event: StackEvent) -> UnwoundStack:
        """Unwinds from the frame where the kernel stopped, and stores a rule for each pc on the way."""
        assert event.registers is not None
        self.misses += 1
        stopped_at = event.native[-1].pc if event.native else event.registers.rip
        failing = self._failing.get(stopped_at)
        if failing is not None and failing.skip():
            self.skipped += 1
            return UnwoundStack(event.native, False)
        known = len(self._known)
        memory = BytesMemory(event.registers.rsp, event.copy)
        if self.space.find(event.registers.rip) is None:
            self.refresh_if_due()
        above = () if event.from_leaf else event.native[:-1]
        returned = not event.from_leaf and event.native[-1].is_return
        rest: list[NativePc] = []
        unwound = unwind(event.registers, memory, self.space, MAX_FRAMES, is_return=returned)
        for frame in unwound.frames:
            rest.append(NativePc(frame.pc, frame.is_return, frame.guessed))
            if frame.rule is not None:
                self._note(frame.lookup_pc, frame.rule)
        last = unwound.frames[-1] if unwound.frames else None
        if unwound.complete and last is not None and last.rule is None:
            rule = self.space.rule(last.lookup_pc)  # the kernel must know that there is no caller
            if rule is not None:
                self._note(last.lookup_pc, rule)
        if unwound.complete or len(self._known) > known:
            self._failing.pop(stopped_at, None)
        elif failing is not None:
            failing.failed()
        elif len(self._failing) < _MAX_FAILING:
            self._failing[stopped_at] = _FailingPc()
        return UnwoundStack((*above, *rest), unwound.complete)

    def _note(self, pc: int, rule: Rule) -> None:
        packed = pack_rule(rule)
        if packed is None or self._known.get(pc) == packed:
            return
        if self._put(pc, packed):
            self._known[pc] = packed
        else:
            self.not_stored += 1

    def map_code(self, start: int, end: int) -> None:
        """An executable file was mapped there."""
        self._stale = True
        self._failing.clear()
        self._drop_where(lambda pc: start <= pc < end)

    def refresh_if_due(self) -> None:
        """Reads the mappings for a pc in no known module: at once when code was mapped since. Else the pc is code
        without a file or of a damaged stack, and the mappings are read rarely, because many of them take long."""
        if self._stale or time.monotonic() >= self._not_before:
            self.refresh()

    def refresh(self) -> None:
        """Reads the mappings, and drops the rules of modules that are gone or were replaced."""
        began = time.monotonic()
        self._stale = False
        change = self.space.refresh()
        self._not_before = time.monotonic() + REFRESH_INTERVAL_RATIO * (time.monotonic() - began)
        gone: list[MappedModule] = [*change.went, *(before for before, _ in change.changed)]
        if gone:
            self._drop_where(lambda pc: any(module.start <= pc < module.end for module in gone))

    def drop_all(self) -> None:
        self._drop_where(lambda _pc: True)

    def _drop_where(self, stale: Callable[[int], bool]) -> None:
        for pc in [pc for pc in self._known if stale(pc)]:
            del self._known[pc]
            self._drop(pc)
