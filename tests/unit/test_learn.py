"""What the learner tries again, and how often."""

import os
from collections.abc import Iterator

import pytest

from memforensics.probes.ebpf.loader.layout import Ended, NativePc, StackEvent
from memforensics.probes.ebpf.stacks.unwind_rule_cache import MOST_LEFT_ALONE, TRIES, Learner
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
        kind="mmap",
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
def learner() -> Iterator[Learner]:
    process = open_process(os.getpid())
    yield Learner(AddressSpace(process), lambda _pc, _rule: True, lambda _pc: None)
    process.close()


def test_a_pc_of_which_nothing_is_learned_is_tried_ever_less(learner: Learner) -> None:
    events = 4 * MOST_LEFT_ALONE
    for _ in range(events):
        stack = learner.learn(miss(NOWHERE))
        assert [pc.pc for pc in stack.native] == [NOWHERE]
        assert not stack.complete
    tried = events - learner.left_alone
    assert TRIES < tried < 20
    before = learner.left_alone
    learner.learn(miss(NOWHERE + 16))
    assert learner.left_alone == before, "another pc is tried at once"
    learner.replaced(NOWHERE, NOWHERE + 4096)
    learner.learn(miss(NOWHERE))
    assert learner.left_alone == before, "new code is a new chance"
