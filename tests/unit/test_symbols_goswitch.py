"""The rule at the return address of the call in runtime.systemstack, from the code there."""

from memforensics.symbols.unwind.go_switch import switch_rule

# Go 1.19.8, amd64: mov %fs:-8,%rax; mov 48(%rax),%rbx; mov 192(%rbx),%rax; mov %rax,%fs:-8; mov 56(%rax),%rsp; ...
GO_1_19 = bytes.fromhex(
    "64488b0425f8ffffff 488b5830 488b83c0000000 6448890425f8ffffff 488b6038 48c7403800000000 c3 4889fa".replace(" ", "")
)
LOADS_BP = bytes.fromhex("488b6868")  # mov 104(%rax),%rbp, from Go 1.21 on


def test_go_1_19() -> None:
    rule = switch_rule(GO_1_19)
    assert rule is not None
    assert (rule.cfa_base, rule.via, rule.cfa_offset) == ("go-switch", 48, 192)
    assert (rule.ra_offset, rule.rbp_offset) == (56, 104)
    assert not rule.guessed


def test_a_frame_pointer_that_is_loaded() -> None:
    at = GO_1_19.index(bytes.fromhex("48c74038"))
    code = GO_1_19[:at] + LOADS_BP.replace(b"\x68\x68", b"\x68\x60") + GO_1_19[at:]
    rule = switch_rule(code)
    assert rule is not None
    assert (rule.ra_offset, rule.rbp_offset) == (56, 96)


def test_other_code() -> None:
    assert switch_rule(b"") is None
    assert switch_rule(GO_1_19[1:]) is None
    assert switch_rule(GO_1_19[:40]) is None
    other_thread_local = GO_1_19[:29] + b"\xf0" + GO_1_19[30:]
    assert switch_rule(other_thread_local) is None
    another_stack_pointer = GO_1_19.replace(bytes.fromhex("48c74038"), bytes.fromhex("48c74040"))
    assert switch_rule(another_stack_pointer) is None
