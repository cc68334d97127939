"""What the rule_cache tries again, and how often."""

import os
from collections.abc import Iterator

import pytest

from memforensics.probes.ebpf.loader.layout import Ended, Kind, NativePc, StackEvent
from memforensics.probes.ebpf.stacks.unwind_rule_cache import FREE_FAILURES, MAX_SKIPPED, RuleCache
from memforensics.symbols.address_space import AddressSpace
from memforensics.symbols.unwind.unwinder import Registers
from memforensics.target import open_process

NOWHERE = 0x1000


def miss(pc: int) -> StackEvent:
    """A leaf at `pc`, with a stack of zeros."""
    return StackEvent(
        space=1,
        tid=1,
        t_ns=1,
        site=1,
        kind=Kind.mmap,
        shared=False,
        file_backed=False,
        ended=Ended.MISS,
        native=(NativePc(pc, False, False),),
        python=(),
        python_flags=0,
        registers=Registers(rip=pc, rsp=0x7FFF0000),
        copy=bytes(256),
    )


@pytest.fixture
def rule_cache() -> Iterator[RuleCache]:
    process = open_process(os.getpid())
    yield RuleCache(AddressSpace(process), lambda _pc, _rule: True, lambda _pc: None)
    process.close()


def test_a_failing_pc_is_tried_less_and_less(rule_cache: RuleCache) -> None:
    events = 4 * MAX_SKIPPED
    for _ in range(events):
        stack = rule_cache.learn(miss(NOWHERE))
        assert [pc.pc for pc in stack.native] == [NOWHERE]
        assert not stack.complete
    tried = events - rule_cache.skipped
    assert FREE_FAILURES < tried < 20
    before = rule_cache.skipped
    rule_cache.learn(miss(NOWHERE + 16))
    assert rule_cache.skipped == before, "another pc is tried at once"
    rule_cache.map_code(NOWHERE, NOWHERE + 4096)
    rule_cache.learn(miss(NOWHERE))
    assert rule_cache.skipped == before, "new code is a new chance"
