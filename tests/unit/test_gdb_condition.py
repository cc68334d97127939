"""The words of stacks --if."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memforensics.errors import UsageError
from memforensics.probes.gdb.condition import arguments_of, gdb_condition


def test_argument_names_become_registers() -> None:
    assert gdb_condition("length == 16384", "mmap", syscall=True) == "((unsigned long)$rsi) == 16384"
    assert gdb_condition("flags & 0x20", "mmap", syscall=True) == "((int)$r10) & 0x20"
    assert gdb_condition("arg3 == 1", "anything", syscall=True) == "((unsigned long)$r10) == 1"
    assert gdb_condition("arg3 == 1", "anything", syscall=False) == "((unsigned long)$rcx) == 1"
    assert gdb_condition("$rdi>1&&!(size<2)", "malloc", syscall=False) == (
        "((unsigned long)$rdi) > 1 && ! ( ((unsigned long)$rdi) < 2 )"
    )


@pytest.mark.parametrize(
    "words",
    [
        "system(1)",
        "$rdi(1)",
        "(length)(1)",
        "length = 3",
        "length == 3; shell id",
        "*addr",
        "1 + *addr",
        "1 & &addr",
        '"text"',
        "$_siginfo",
        "$mf_stops",
        "((length)",
        "length)(",
        "size == 1",
        "",
        "   ",
        "a\nb",
    ],
)
def test_other_than_arithmetic_is_refused(words: str) -> None:
    with pytest.raises(UsageError):
        gdb_condition(words, "mmap", syscall=True)


@given(st.text(max_size=60))
def test_assignments_and_calls_are_refused(words: str) -> None:
    try:
        condition = gdb_condition(words, "mmap", syscall=True)
    except UsageError:
        return
    assert not set(condition) & set("\"';{}[]@?:,\\\n`")
    bare = condition
    for pair in ("==", "!=", "<=", ">="):
        bare = bare.replace(pair, "")
    assert "=" not in bare


def test_int_arguments_are_signed() -> None:
    fd = next(a for a in arguments_of("mmap", syscall=True) if a.name == "fd")
    assert fd.value(0xFFFFFFFF) == -1
    assert fd.value(0xFFFFFFFFFFFFFFFF) == -1
    assert fd.value(7) == 7
    length = next(a for a in arguments_of("mmap", syscall=True) if a.name == "length")
    assert length.value(0xFFFFFFFF) == 0xFFFFFFFF
