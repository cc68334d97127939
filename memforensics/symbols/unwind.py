"""From registers and a piece of stack to frames, by CFI; where code has none, by guesses that must prove themselves."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from memforensics.symbols.calls import Call, call_before, call_doubt
from memforensics.symbols.cfi import SIGNAL_RULE, Rule, Saved, is_sigreturn_code
from memforensics.symbols.expression import CannotEvaluate, evaluate
from memforensics.symbols.goswitch import CODE_BYTES, switch_rule
from memforensics.symbols.rules import DWARF_REGISTERS
from memforensics.symbols.space import AddressSpace, MappedModule
from memforensics.target.memory import Memory, Unreadable, read_u64

WhyEnded = Literal[
    "outermost",  # CFI says there is no caller, or the return address is 0: complete
    "no-module",  # the pc is in no mapped file and no guess held
    "no-rule",  # no CFI there and no guess held
    "unreadable",  # the stack (or the copy of its top) ends here
    "frame-limit",
    "switched",  # the caller is on another stack, which only the kernel's walk can follow
    "no-progress",  # the CFA did not move up: damaged stack or wrong rule
]

_FRAME_POINTER_RULE = Rule(cfa_base="rbp", cfa_offset=16, rbp_offset=-16, guessed=True)
_OUTERMOST_RULE = Rule(
    cfa_base="rsp", cfa_offset=8, end=True, guessed=True
)  # by a frame pointer of zero (psABI, 3.4.1)
_SCANNED_BYTES = 16 * 1024
_MAX_CANDIDATES = 48
_MAX_GUESS_STEPS = 1500  # steps of all attempts of one unwinding together
_MIN_PROOF_FRAMES = 2  # by CFI, where the end of the stack is not in the copy
_MIN_CHAIN = 2  # frame pointers in a row, each of which led to a call, before a zero is believed to be the end
_CHUNK = 4096  # of the stack, looked through for return addresses in one go
_MAX_FRAME_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Registers:
    """User registers of x86-64 that unwinding needs."""

    rip: int
    rsp: int
    rbp: int = 0
    rbx: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0


@dataclass(frozen=True, slots=True)
class UnwoundFrame:
    """One frame. `pc` is what was found (a return address but for the leaf and for what a signal interrupted);
    `lookup_pc` is what to look up (pc - 1 for return addresses)."""

    pc: int
    lookup_pc: int
    module: MappedModule | None
    vaddr: int | None  # of pc, in the module's file
    rule: Rule | None  # that led to the caller; None at the end
    guessed: bool  # this frame was found by a guess of the frame below

    @property
    def is_return(self) -> bool:
        return self.lookup_pc != self.pc


@dataclass(frozen=True, slots=True)
class Unwound:
    """Leaf first."""

    frames: tuple[UnwoundFrame, ...]
    complete: bool
    why_ended: WhyEnded


def unwind(registers: Registers, memory: Memory, space: AddressSpace, max_frames: int = 128) -> Unwound:
    """`memory` may be a copy of the stack's top (BytesMemory) or the live process. Raises only what reading live
    memory raises when the process is gone or not ours."""
    walk = _Walker(memory, space).walk(_State(registers, is_return=False, guessed=False), max_frames)
    return Unwound(tuple(walk.frames), walk.why == "outermost", walk.why)


@dataclass(frozen=True, slots=True)
class _State:
    """Registers at one frame, and how its pc was found."""

    registers: Registers
    is_return: bool
    guessed: bool
    chained: int = 0  # frame pointers followed in a row to come here

    @property
    def lookup_pc(self) -> int:
        return self.registers.rip - self.is_return

    @property
    def ends_a_chain(self) -> bool:
        """Frame pointers led here, and the last is zero: the outermost frame, whose return address need not be one (Go
        puts runtime.goexit + 1 there)."""
        return self.chained >= _MIN_CHAIN and self.registers.rbp == 0


@dataclass(frozen=True, slots=True)
class _ReturnSlot:
    """A word of the stack that can be a return address, and the word below it where that was read with it."""

    address: int
    call: Call
    below: int | None


@dataclass(slots=True)
class _Walk:
    frames: list[UnwoundFrame] = field(default_factory=list)
    why: WhyEnded = "frame-limit"

    def proves_the_guess(self) -> bool:
        """Whether what follows a guessed step makes sense to the end of what can be seen."""
        if self.why in ("outermost", "switched"):
            return True
        by_cfi = sum(frame.rule is not None and not frame.rule.guessed for frame in self.frames)
        return self.why in ("unreadable", "frame-limit") and by_cfi >= _MIN_PROOF_FRAMES


class _NoStep(Exception):
    def __init__(self, why: WhyEnded) -> None:
        super().__init__(why)
        self.why: WhyEnded = why


class _Walker:
    def __init__(self, memory: Memory, space: AddressSpace) -> None:
        self._memory, self._space = memory, space
        self._steps_left = _MAX_GUESS_STEPS
        self._guessing = 0
        self._dead_ends: set[Registers] = set()
        self._chunks: dict[int, list[_ReturnSlot]] = {}
        self._bottom: int | None = None  # of the stack that guesses look at

    def walk(self, state: _State, frames_left: int) -> _Walk:
        walk = _Walk()
        while len(walk.frames) < frames_left:
            if self._guessing:
                self._steps_left -= 1
                if self._steps_left < 0:
                    walk.why = "no-rule"
                    return walk
            rule = self._rule(state)
            if rule is None and state.ends_a_chain:
                rule = _OUTERMOST_RULE
            if rule is None:
                rest = self._guess(state, frames_left - len(walk.frames) - 1)
                if rest is None:
                    walk.frames.append(self._frame(state, None))
                    walk.why = "no-rule" if self._space.find(state.lookup_pc) else "no-module"
                    return walk
                rule, tail = rest
                walk.frames += [self._frame(state, rule), *tail.frames]
                walk.why = tail.why
                return walk
            walk.frames.append(self._frame(state, rule))
            if rule.end:
                walk.why = "outermost"
                return walk
            try:
                state = self._step(state, rule)
            except _NoStep as stop:
                walk.why = stop.why
                return walk
            if state.registers.rip == 0:
                walk.why = "outermost"
                return walk
            if (
                self._guessing
                and state.is_return
                and not state.ends_a_chain
                and call_before(self._space, state.registers.rip) is None
            ):
                walk.why = "no-rule"  # the guess was wrong
                return walk
        return walk

    def _frame(self, state: _State, rule: Rule | None) -> UnwoundFrame:
        pc, lookup_pc = state.registers.rip, state.lookup_pc
        found = self._space.find(lookup_pc)
        module, vaddr = (found[0], found[1] + pc - lookup_pc) if found is not None else (None, None)
        return UnwoundFrame(pc, lookup_pc, module, vaddr, rule, state.guessed)

    # --- one step

    def _rule(self, state: _State) -> Rule | None:
        rule = self._space.rule(state.lookup_pc)
        if rule is None and is_sigreturn_code(self._space.code(state.registers.rip, 9) or b""):
            return SIGNAL_RULE
        if rule is None and state.is_return:
            return switch_rule(self._space.code(state.registers.rip, CODE_BYTES) or b"")
        return rule

    def _step(self, state: _State, rule: Rule) -> _State:
        """The caller's state. _NoStep when there is none to be had."""
        registers = state.registers
        if rule.cfa_base == "go-switch":
            raise _NoStep("switched")
        try:
            cfa = self._cfa(registers, rule)
            signal = rule.cfa_base == "signal"
            if not signal and not 0 < cfa - registers.rsp < _MAX_FRAME_BYTES:
                raise _NoStep("no-progress")
            assert rule.ra_offset is not None
            pc = self._word((registers.rsp if signal else cfa) + rule.ra_offset)
            bases = {"cfa": cfa, "rbp": registers.rbp, "rsp": registers.rsp}
            places = rule.saved
            if rule.rbp_offset is not None:
                places = (*places, Saved("rbp", rule.rbp_base, rule.rbp_offset))
            restored = {saved.register: self._word(bases[saved.base] + saved.offset) for saved in places}
        except Unreadable:
            raise _NoStep("unreadable") from None
        except CannotEvaluate:
            raise _NoStep("no-rule") from None
        return _State(
            replace(registers, rip=pc, rsp=cfa, **restored),
            is_return=not rule.signal_frame,
            guessed=rule.guessed,
            chained=state.chained + 1 if rule is _FRAME_POINTER_RULE else 0,
        )

    def _cfa(self, registers: Registers, rule: Rule) -> int:
        match rule.cfa_base:
            case "rsp" | "rbp" | "rbx" | "r12" | "r13" | "r14" | "r15":
                return int(getattr(registers, rule.cfa_base)) + rule.cfa_offset
            case "expression-plt":
                return registers.rsp + (16 if registers.rip & 15 >= rule.cfa_offset else 8)
            case "deref-rbp":
                return self._word(registers.rbp + rule.cfa_offset)
            case "deref-rsp" | "signal":
                return self._word(registers.rsp + rule.cfa_offset)
            case "expression":
                known = {
                    number: getattr(registers, name)
                    for number, name in enumerate(DWARF_REGISTERS)
                    if name in Registers.__slots__
                }
                return evaluate(rule.expression or b"", {**known, 16: registers.rip}, self._word)
        raise CannotEvaluate(f"{rule.cfa_base} is not kept across calls")

    def _word(self, address: int) -> int:
        return read_u64(self._memory, address)

    # --- guesses

    def _guess(self, state: _State, frames_left: int) -> tuple[Rule, _Walk] | None:
        """A rule for code without CFI, and the walk that proves it. None: nothing holds."""
        if frames_left <= 0 or state.registers in self._dead_ends:
            return None
        self._guessing += 1
        try:
            for rule in self._candidates(state):
                try:
                    caller = self._step(state, rule)
                except _NoStep:
                    continue
                walk = self.walk(caller, frames_left)
                if walk.proves_the_guess():
                    return rule, walk
                if self._steps_left <= 0:
                    break
        finally:
            self._guessing -= 1
        self._dead_ends.add(state.registers)
        return None

    def _candidates(self, state: _State) -> Iterator[Rule]:
        """Frame pointer and stack scan, those whose call is likeliest to have come here first. That a frame pointer
        leads to a return address speaks for it even where that call was to another function (which may have jumped)."""
        registers = state.registers
        ranked: list[tuple[int, int, Rule]] = []
        if registers.rbp % 8 == 0 and 0 <= registers.rbp - registers.rsp < _MAX_FRAME_BYTES:
            doubt = self._doubt(registers.rbp + 8, state.lookup_pc)
            if doubt is None and state.chained + 1 >= _MIN_CHAIN and self._ends(registers.rbp):
                doubt = 1
            if doubt is not None:
                ranked.append((min(doubt, 1), 0, _FRAME_POINTER_RULE))
        for slot in self._return_slots(registers.rsp):
            at = slot.address - registers.rsp
            rule = Rule(cfa_base="rsp", cfa_offset=at + 8, guessed=True)
            doubt = call_doubt(self._space, slot.call, state.lookup_pc)
            ranked.append((doubt, 2 * at + 1, rule))
            if at >= 8 and slot.below is not None and self._looks_like_stack(slot.below, slot.address):
                ranked.append((doubt, 2 * at + 2, replace(rule, rbp_offset=-16)))
            if len(ranked) >= _MAX_CANDIDATES:
                break
        ranked.sort(key=lambda entry: entry[:2])
        return (rule for _, _, rule in ranked)

    def _return_slots(self, rsp: int) -> Iterator[_ReturnSlot]:
        """Words of the stack that can be return addresses, from `rsp` on. Each part of the stack is looked at once."""
        if self._bottom is None or rsp < self._bottom:
            self._bottom, self._chunks = rsp, {}
        first = (rsp - self._bottom) // _CHUNK
        for index in range(first, first + _SCANNED_BYTES // _CHUNK + 1):
            if index not in self._chunks:
                self._chunks[index] = self._slots_in(self._bottom + index * _CHUNK)
            for slot in self._chunks[index]:
                if rsp <= slot.address < rsp + _SCANNED_BYTES:
                    yield slot

    def _slots_in(self, start: int) -> list[_ReturnSlot]:
        stack = self._read_up_to(start, _CHUNK)
        words = struct.unpack(f"<{len(stack) // 8}Q", stack[: len(stack) // 8 * 8])
        out = []
        for i, word in enumerate(words):
            if self._space.executable(word - 1) and (call := call_before(self._space, word)) is not None:
                out.append(_ReturnSlot(start + 8 * i, call, words[i - 1] if i else None))
        return out

    def _doubt(self, slot: int, pc: int) -> int | None:
        try:
            word = self._word(slot)
        except Unreadable:
            return None
        call = call_before(self._space, word) if self._space.executable(word - 1) else None
        return call_doubt(self._space, call, pc) if call is not None else None

    def _ends(self, record: int) -> bool:
        """Whether the frame record there (the caller's rbp, the return address) is the last one."""
        try:
            return self._word(record) == 0 and self._space.executable(self._word(record + 8) - 1)
        except Unreadable:
            return False

    @staticmethod
    def _looks_like_stack(word: int, slot: int) -> bool:
        return word % 8 == 0 and 0 < word - slot < _MAX_FRAME_BYTES

    def _read_up_to(self, address: int, size: int) -> bytes:
        """What can be read, from `address` on."""
        out, step = b"", size
        while len(out) < size and step >= 8:
            try:
                out += self._memory.read(address + len(out), min(step, size - len(out)))
            except Unreadable:
                step //= 2
        return out
