"""Unwinds a stack by CFI. Without CFI it guesses the caller; the frames that follow must verify the guess."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from memforensics.symbols.address_space import AddressSpace, MappedModule
from memforensics.symbols.unwind.call_instructions import Call, call_before, call_doubt, in_binding_stub, rest_of_stub
from memforensics.symbols.unwind.cfi import Rule, Saved
from memforensics.symbols.unwind.expression import CannotEvaluate, evaluate
from memforensics.symbols.unwind.go_switch import CODE_BYTES, switch_rule
from memforensics.symbols.unwind.machines import AARCH64, X86_64, Machine
from memforensics.symbols.unwind.rule import CfaBase
from memforensics.target.memory import Memory, Unreadable, read_u64

WhyEnded = Literal[
    "outermost",  # CFI says that there is no caller, or the return address is 0: complete
    "no-module",  # the pc is in no mapped file, and no guess was verified
    "no-rule",  # the pc has no CFI, and no guess was verified
    "unreadable",  # the stack (or the copy of its top) ends here
    "frame-limit",
    "switched",  # the caller is on another stack, which only the walk in the kernel can follow
    "no-progress",  # the CFA did not move up: damaged stack or wrong rule
]

# The frame pointer is zero in the outermost frame (psABI, 3.4.1).
_OUTERMOST_RULE = Rule(cfa_base="rsp", cfa_offset=8, end=True, guessed=True)
_STUB_RULE = Rule(cfa_base="rsp", cfa_offset=0, ra_offset=None, ra_in_lr=True)
_BINDING_RULE = Rule(cfa_base="rsp", cfa_offset=16)
_LEAF_RULE = replace(_STUB_RULE, guessed=True)
_RECORD_BYTES = 16  # frame record: the caller's frame pointer, the return address
_SCANNED_BYTES = 16 * 1024
_MAX_CANDIDATES = 48
_MAX_GUESS_STEPS = 1500  # of all attempts for one stack together
_MIN_PROOF_FRAMES = 2  # frames by CFI that verify a guess if the end of the stack is not in the copy
_MIN_CHAIN = 2  # frame pointers in a row that led to a call, before a zero counts as the end
_CHUNK = 4096  # bytes of the stack scanned at once
_MAX_FRAME_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Registers:
    """The user registers that unwinding needs, by their x86-64 names (aarch64: machines.py)."""

    rip: int
    rsp: int
    rbp: int = 0
    rbx: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    lr: int | None = None  # aarch64's x30; None on x86-64

    @property
    def machine(self) -> Machine:
        return X86_64 if self.lr is None else AARCH64


@dataclass(frozen=True, slots=True)
class UnwoundFrame:
    """`pc` is a return address, except in the leaf and in a frame that a signal interrupted. `lookup_pc` is the address
    to look up (pc - 1 for return addresses)."""

    pc: int
    lookup_pc: int
    module: MappedModule | None
    vaddr: int | None  # of pc, in the module's file
    rule: Rule | None  # the rule that led to the caller; None at the end
    guessed: bool  # found by a guessed rule of its callee

    @property
    def is_return(self) -> bool:
        return self.lookup_pc != self.pc


@dataclass(frozen=True, slots=True)
class Unwound:
    """Leaf first."""

    frames: tuple[UnwoundFrame, ...]
    complete: bool
    why_ended: WhyEnded


def unwind(
    registers: Registers, memory: Memory, space: AddressSpace, max_frames: int = 128, *, is_return: bool = False
) -> Unwound:
    """`memory` may be a copy of the stack's top (BytesMemory) or the live process. `is_return`: the registers are those
    of a caller, whose pc is a return address. Raises only what reading live memory raises if the process is gone or
    access is denied."""
    walk = _Walker(memory, space, registers.machine).walk(_State(registers, is_return, guessed=False), max_frames)
    return Unwound(tuple(walk.frames), walk.why == "outermost", walk.why)


@dataclass(frozen=True, slots=True)
class _State:
    """Registers at one frame, and how its pc was found."""

    registers: Registers
    is_return: bool
    guessed: bool
    chained: int = 0  # frame pointers followed in a row up to here

    @property
    def lookup_pc(self) -> int:
        return self.registers.rip - self.is_return

    @property
    def ends_chain(self) -> bool:
        """Whether frame pointers led here and this frame's is zero: the outermost frame. Its return address need not
        follow a call (Go puts runtime.goexit + 1 there)."""
        return self.chained >= _MIN_CHAIN and self.registers.rbp == 0


@dataclass(frozen=True, slots=True)
class _ReturnSlot:
    """A word of the stack that can be a return address. `below`: the word below it, if in the same chunk."""

    address: int
    call: Call
    below: int | None


@dataclass(slots=True)
class _Walk:
    frames: list[UnwoundFrame] = field(default_factory=list)
    why: WhyEnded = "frame-limit"

    def verifies_guess(self) -> bool:
        """Whether the frames after a guessed step reach the end of the stack, or of the copy with enough CFI."""
        if self.why in ("outermost", "switched"):
            return True
        by_cfi = sum(frame.rule is not None and not frame.rule.guessed for frame in self.frames)
        return self.why in ("unreadable", "frame-limit") and by_cfi >= _MIN_PROOF_FRAMES


class _NoStep(Exception):
    def __init__(self, why: WhyEnded) -> None:
        super().__init__(why)
        self.why: WhyEnded = why


class _Walker:
    def __init__(self, memory: Memory, space: AddressSpace, machine: Machine) -> None:
        self._memory, self._space, self._machine = memory, space, machine
        self._steps_left = _MAX_GUESS_STEPS
        self._guess_depth = 0
        self._dead_ends: set[Registers] = set()
        self._chunks: dict[int, list[_ReturnSlot]] = {}
        self._bottom: int | None = None  # of the stack that is scanned

    def walk(self, state: _State, frames_left: int) -> _Walk:
        walk = _Walk()
        while len(walk.frames) < frames_left:
            if self._guess_depth:
                self._steps_left -= 1
                if self._steps_left < 0:
                    walk.why = "no-rule"
                    return walk
            rule = self._rule(state)
            if rule is None and state.ends_chain:
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
                is_lost = self._guess_depth and self._machine.has_link_register and state.registers.rbp != 0
                walk.why = "no-rule" if is_lost else "outermost"
                return walk
            if (
                self._guess_depth
                and state.is_return
                and not state.ends_chain
                and call_before(self._space, state.registers.rip, self._machine) is None
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
        # aarch64's vdso has no CFI for the trampoline, or (before Linux 5.8) CFI that skips the interrupted frame
        unknown = rule is None or (rule.signal_frame and self._machine.has_link_register)
        if unknown and self._in_trampoline(state):
            return self._machine.signal_rule
        if rule is None and state.is_return:
            return switch_rule(self._space.code(state.registers.rip, CODE_BYTES) or b"")
        if rule is None and self._machine.has_link_register and rest_of_stub(self._space, state.registers.rip):
            return _BINDING_RULE if in_binding_stub(self._space, state.registers.rip) else _STUB_RULE
        return rule

    def _in_trampoline(self, state: _State) -> bool:
        """Whether the pc is at the trampoline's first instruction, where handlers return to, or on aarch64 at its
        second and last."""
        pc = state.registers.rip
        others = (pc - 4,) if self._machine.has_link_register and not state.is_return else ()
        return any(self._machine.is_sigreturn_code(self._space.code(at, 9) or b"") for at in (pc, *others))

    def _step(self, state: _State, rule: Rule) -> _State:
        """The caller's state. Raises _NoStep."""
        registers = state.registers
        if rule.cfa_base == "go-switch":
            raise _NoStep("switched")
        try:
            cfa = self._cfa(registers, rule)
            signal = rule.cfa_base == "signal"
            min_size = 0 if rule.ra_in_lr and not state.is_return else 1  # a leaf may have no frame
            if not signal and not min_size <= cfa - registers.rsp < _MAX_FRAME_BYTES:
                raise _NoStep("no-progress")
            pc = self._return_address(state, rule, registers.rsp if signal else cfa)
            bases = {"cfa": cfa, "rbp": registers.rbp, "rsp": registers.rsp}
            saved_registers = rule.saved
            if rule.rbp_offset is not None:
                saved_registers = (*saved_registers, Saved("rbp", rule.rbp_base, rule.rbp_offset))
            restored = {saved.register: self._word(bases[saved.base] + saved.offset) for saved in saved_registers}
        except Unreadable:
            raise _NoStep("unreadable") from None
        except CannotEvaluate:
            raise _NoStep("no-rule") from None
        if registers.lr is not None:
            restored.setdefault("lr", 0)  # the call to this frame overwrote it
        return _State(
            replace(registers, rip=pc, rsp=cfa, **restored),
            is_return=not rule.signal_frame,
            guessed=rule.guessed,
            chained=state.chained + 1 if rule.guessed and rule.cfa_base == "rbp" else 0,
        )

    def _return_address(self, state: _State, rule: Rule, place: int) -> int:
        lr = state.registers.lr
        if rule.ra_offset is not None:
            word = self._word(place + rule.ra_offset)
        elif rule.ra_in_lr and lr and not state.is_return:
            word = lr
        else:
            raise _NoStep("no-rule")
        return word & self._machine.address_mask

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
                    for number, name in self._machine.cfa_bases.items()
                    if name in Registers.__slots__
                }
                known[self._machine.pc] = registers.rip
                return evaluate(rule.expression or b"", known, self._word)
        raise CannotEvaluate(f"{rule.cfa_base} is not kept across calls")

    def _word(self, address: int) -> int:
        return read_u64(self._memory, address)

    # --- guesses

    def _guess(self, state: _State, frames_left: int) -> tuple[Rule, _Walk] | None:
        """A rule for code without CFI, and the walk that verifies it; None if no rule could be verified."""
        if frames_left <= 0 or state.registers in self._dead_ends:
            return None
        self._guess_depth += 1
        try:
            for rule in self._candidates(state):
                try:
                    caller = self._step(state, rule)
                except _NoStep:
                    continue
                walk = self.walk(caller, frames_left)
                if walk.verifies_guess():
                    return rule, walk
                if self._steps_left <= 0:
                    break
        finally:
            self._guess_depth -= 1
        self._dead_ends.add(state.registers)
        return None

    def _candidates(self, state: _State) -> Iterator[Rule]:
        """Rules by the frame pointer and by a scan of the stack, those with the likeliest call first. A frame pointer
        that leads to a return address is plausible even if the call was to another function (which may have jumped).
        """
        registers = state.registers
        ranked: list[tuple[int, int, Rule]] = []
        if registers.rbp % 8 == 0 and 0 <= registers.rbp - registers.rsp < _MAX_FRAME_BYTES:
            doubt = self._slot_doubt(registers.rbp + 8, state.lookup_pc)
            if doubt is None and state.chained + 1 >= _MIN_CHAIN and self._is_last_record(registers.rbp):
                doubt = 1
            if doubt is not None:
                ranked.append((min(doubt, 1), 0, self._record_rule("rbp", 0, registers.rbp)))
        if registers.lr and not state.is_return:
            ranked += self._leaf_candidate(registers, state.lookup_pc)
        for slot in self._return_slots(registers.rsp):
            at = slot.address - registers.rsp
            rule = Rule(cfa_base="rsp", cfa_offset=at + 8, guessed=True)
            doubt = call_doubt(self._space, slot.call, state.lookup_pc, self._machine)
            ranked.append((doubt, 2 * at + 1, rule))
            if at >= 8 and slot.below is not None and self._looks_like_stack(slot.below, slot.address):
                ranked.append((doubt, 2 * at + 2, self._record_rule("rsp", at - 8, slot.address - 8)))
            if len(ranked) >= _MAX_CANDIDATES:
                break
        ranked.sort(key=lambda entry: entry[:2])
        return (rule for _, _, rule in ranked)

    def _leaf_candidate(self, registers: Registers, pc: int) -> Iterator[tuple[int, int, Rule]]:
        """x30 points into the caller if the function has made no call yet, otherwise into the function itself."""
        returns_to = (registers.lr or 0) & self._machine.address_mask
        doubt = self._call_doubt(returns_to, pc)
        current, caller = self._function(pc), self._function(returns_to - 1)
        if doubt is None or (current is not None and current == caller) or self._record(registers.rbp)[1] == returns_to:
            return
        size = self._bytes_to_caller(returns_to, registers.rbp, registers.rsp, 0)
        yield doubt if current is None else 0, 1 if current is None else -1, replace(_LEAF_RULE, cfa_offset=size)

    def _function(self, pc: int) -> tuple[MappedModule, int] | None:
        found = self._space.find(pc)
        entry = self._space.entry(*found) if found is not None else None
        return (found[0], entry) if found is not None and entry is not None else None

    def _record_rule(self, base: CfaBase, offset: int, record: int) -> Rule:
        """The rule by the frame record at `base` + `offset`: the top of its frame or, on aarch64, anywhere in it."""
        size = _RECORD_BYTES
        if self._machine.has_link_register:
            callers_record, returns_to = self._record(record)
            size = self._bytes_to_caller(returns_to, callers_record, record, size)
        return Rule(cfa_base=base, cfa_offset=offset + size, ra_offset=8 - size, rbp_offset=-size, guessed=True)

    def _record(self, at: int) -> tuple[int, int]:
        """The caller's frame pointer and the return address; zeros if unreadable."""
        try:
            return self._word(at), self._word(at + 8) & self._machine.address_mask
        except Unreadable:
            return 0, 0

    def _bytes_to_caller(self, returns_to: int, callers_record: int, start: int, default: int) -> int:
        """How far the caller's stack is above `start`, computed from where the caller's CFI has its frame record
        (AAPCS64, 6.4.6: anywhere in its frame); `least` if that is unknown."""
        rule = self._space.rule(returns_to - 1) if returns_to else None
        if rule is None or (rule.cfa_base, rule.rbp_base) != ("rsp", "cfa") or rule.rbp_offset is None:
            return default
        size = callers_record - rule.rbp_offset - rule.cfa_offset - start
        return size if default <= size < _MAX_FRAME_BYTES and size % 16 == 0 else default

    def _return_slots(self, rsp: int) -> Iterator[_ReturnSlot]:
        """Words of the stack that can be return addresses, from `rsp` on. Each chunk is scanned once."""
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
        for i, signed in enumerate(words):
            word = signed & self._machine.address_mask
            if self._space.executable(word - 1) and (call := call_before(self._space, word, self._machine)) is not None:
                out.append(_ReturnSlot(start + 8 * i, call, words[i - 1] if i else None))
        return out

    def _slot_doubt(self, slot: int, pc: int) -> int | None:
        try:
            word = self._word(slot)
        except Unreadable:
            return None
        return self._call_doubt(word & self._machine.address_mask, pc)

    def _call_doubt(self, word: int, pc: int) -> int | None:
        call = call_before(self._space, word, self._machine) if self._space.executable(word - 1) else None
        return call_doubt(self._space, call, pc, self._machine) if call is not None else None

    def _is_last_record(self, record: int) -> bool:
        """Whether this frame record is the last one."""
        callers_record, returns_to = self._record(record)
        return callers_record == 0 and self._space.executable(returns_to - 1)

    @staticmethod
    def _looks_like_stack(word: int, slot: int) -> bool:
        return word % 8 == 0 and 0 < word - slot < _MAX_FRAME_BYTES

    def _read_up_to(self, address: int, size: int) -> bytes:
        """At most `size` bytes at `address`: as many as can be read."""
        out, step = b"", size
        while len(out) < size and step >= 8:
            try:
                out += self._memory.read(address + len(out), min(step, size - len(out)))
            except Unreadable:
                step //= 2
        return out
