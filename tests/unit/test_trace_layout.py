"""The shapes shared with the BPF programs: rules the kernel can follow, and the constants of both sides."""

import re
from pathlib import Path

import pytest

from memforensics.probes.ebpf.loader import engine, layout
from memforensics.symbols.unwind.cfi import Rule

SOURCE = engine.expand_includes("mmap.bpf.c").decode()
WALK = (engine.SOURCES / "unwind.bpf.h").read_text()


@pytest.mark.parametrize("kind", list(layout.EventType))
def test_event_numbers_agree(kind: layout.EventType) -> None:
    assert re.search(rf"#define EVENT_{kind.name} {kind.value}\b", SOURCE)


def test_losses_have_words_for_each() -> None:
    numbers = [int(n) for n in re.findall(r"#define LOSS_\w+ (\d+)", SOURCE)]
    assert numbers == list(range(len(layout.LOSSES)))
    assert f"#define LOSSES {len(layout.LOSSES)}" in SOURCE


def test_walk_endings_agree() -> None:
    for ended in layout.Ended:
        assert re.search(rf"#define WALK_{ended.name} {ended.value}\b", WALK)
    assert f"#define MAX_NATIVE {layout.MAX_NATIVE} " in WALK


def test_rules() -> None:
    rbp_frame = Rule(cfa_base="rbp", cfa_offset=16, rbp_offset=-16)
    assert layout.pack_rule(rbp_frame) == layout.RULE.pack(16, -8, -16, 1, 2, 0)
    assert layout.pack_rule(Rule(cfa_base="rsp", cfa_offset=8)) == layout.RULE.pack(8, -8, 0, 0, 0, 0)
    assert layout.pack_rule(Rule(cfa_base="rsp", cfa_offset=0, end=True)) == layout.RULE.pack(0, 0, 0, 0, 1, 0)
    guessed = layout.pack_rule(Rule(cfa_base="rsp", cfa_offset=40, guessed=True))
    assert guessed == layout.RULE.pack(40, -8, 0, 0, 16, 0)


@pytest.mark.parametrize(
    "rule",
    [
        Rule(cfa_base="rbx", cfa_offset=8),
        Rule(cfa_base="expression", cfa_offset=0, expression=b"\x77\x08"),
        Rule(cfa_base="rsp", cfa_offset=1 << 40),
        Rule(cfa_base="rsp", cfa_offset=8, ra_offset=None),
    ],
)
def test_rules_that_the_kernel_cannot_follow(rule: Rule) -> None:
    assert layout.pack_rule(rule) is None


def test_headers_are_in_the_package() -> None:
    include = Path(engine.SOURCES) / "include"
    for name in ("linux/kconfig.h", "linux/version.h", "linux/log2.h", "uapi/linux/bpf.h", "uapi/linux/ptrace.h"):
        assert (include / name).is_file()
