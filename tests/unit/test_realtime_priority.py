"""The scheduling class of this thread: raised for a call, and given back whatever happens."""

import os
import threading

import pytest

from memforensics.target.realtime_priority import realtime_priority


def mine() -> int:
    return os.sched_getscheduler(0)


@pytest.fixture
def is_able() -> bool:
    with realtime_priority:
        return mine() == os.SCHED_FIFO


def test_priority_is_restored(is_able: bool) -> None:
    inside = os.SCHED_FIFO if is_able else os.SCHED_OTHER
    for _ in range(2):
        with realtime_priority:
            assert mine() == inside
            with realtime_priority:
                assert mine() == inside
            assert mine() == inside
        assert mine() == os.SCHED_OTHER
    with pytest.raises(OSError, match="gone"), realtime_priority, realtime_priority:
        raise OSError("gone")
    assert mine() == os.SCHED_OTHER


def test_priority_is_raised_for_one_thread(is_able: bool) -> None:
    if not is_able:
        pytest.skip("needs CAP_SYS_NICE")
    seen = []
    with realtime_priority:
        other = threading.Thread(target=lambda: seen.append(mine()), daemon=True)
        other.start()
    other.join()
    assert mine() == os.SCHED_OTHER
    with realtime_priority:
        assert mine() == os.SCHED_FIFO
    assert len(seen) == 1


def test_batch_class_is_restored(is_able: bool) -> None:
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    seen = []

    def run() -> None:  # a thread knows its class from its first call on
        with realtime_priority:
            seen.append(mine())
        seen.append(mine())

    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    assert seen == [os.SCHED_FIFO if is_able else os.SCHED_BATCH, os.SCHED_BATCH]
