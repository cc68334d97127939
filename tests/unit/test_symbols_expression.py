"""DWARF expressions of call frames: the PLT's expression, arithmetic, and invalid expressions."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memforensics.symbols.unwind.expression import CannotEvaluate, evaluate
from memforensics.target.memory import BytesMemory, read_u64

RSP, PC = 7, 16
PLT = bytes.fromhex("770880003f1a3b2a332422")  # breg7 8; breg16 0; lit15; and; lit11; ge; lit3; shl; plus


def no_memory(address: int) -> int:
    raise AssertionError(address)


@pytest.mark.parametrize(("pc", "words"), [(0x1000, 1), (0x100A, 1), (0x100B, 2), (0x100F, 2)])
def test_the_plt_idiom(pc: int, words: int) -> None:
    assert evaluate(PLT, {RSP: 0x8000, PC: pc}, no_memory) == 0x8000 + 8 * words


def test_a_word_in_memory() -> None:
    """breg7 16; deref; plus_uconst 8: hand-written assembly that saves the stack pointer on another stack."""
    memory = BytesMemory(0x8010, (0x9000).to_bytes(8, "little"))
    assert evaluate(bytes.fromhex("7710062308"), {RSP: 0x8000}, lambda address: read_u64(memory, address)) == 0x9008


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("0a3412", 0x1234),
        ("09ff", 2**64 - 1),
        ("32331e", 6),
        ("35331c", 2),
        ("117f", 2**64 - 1),
        ("311f", 2**64 - 1),
        ("3020", 2**64 - 1),
        ("351222", 10),
        ("09ff302d", 1),
        ("09ff312a", 0),
    ],
)
def test_arithmetic(expression: str, value: int) -> None:
    assert evaluate(bytes.fromhex(expression), {}, no_memory) == value


@pytest.mark.parametrize("expression", ["", "22", "77", "7780", "9b", "0a34", "7000"])
def test_unsupported_expressions_raise(expression: str) -> None:
    with pytest.raises(CannotEvaluate):
        evaluate(bytes.fromhex(expression), {RSP: 1}, no_memory)


@given(st.binary(max_size=2000))
def test_arbitrary_bytes_give_a_word_or_an_error(expression: bytes) -> None:
    with contextlib.suppress(CannotEvaluate):
        assert 0 <= evaluate(expression, dict.fromkeys(range(17), 0x1234), lambda address: address ^ 0x55) < 2**64
