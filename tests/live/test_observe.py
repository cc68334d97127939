"""The observer of a process tree: members that join, leave and exec, and the recorder."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from processes import Child, python, running

from memforensics.analysis.series import tree_trend
from memforensics.analysis.trend import verdict_of_trend
from memforensics.case.model import Sample, Target
from memforensics.errors import NoSuchProcess
from memforensics.jobs.observe.recorder import Recorder, new_meta
from memforensics.jobs.observe.tree import TreeObserver

pytestmark = pytest.mark.live


@contextlib.contextmanager
def observed(command: Sequence[str | Path], interval_s: float) -> Iterator[tuple[Child, TreeObserver, Recorder]]:
    with contextlib.ExitStack() as stack:
        child = stack.enter_context(running(command))
        observer = stack.enter_context(TreeObserver(child.pid, interval_s=interval_s))
        recorder = stack.enter_context(Recorder(new_meta("test", child.pid)))
        recorder.put(observer.open())
        yield child, observer, recorder


def test_exec_is_followed() -> None:
    with observed(["/bin/sh", "-c", "echo ready; read line; exec sleep 60"], 0.05) as (child, observer, _):
        child.tell("go")
        for records in observer.ticks(20):
            found = [r for r in records if isinstance(r, Target)]
            if found:
                break
        assert found[0].pid == child.pid
        assert found[0].cmdline == ("sleep", "...")
        assert observer.events[-1].what == "executed sleep"


def test_children_join_and_leave() -> None:
    program = "import subprocess,time; print('ready', flush=True); subprocess.run(['sleep', '1.5']); time.sleep(60)"
    with observed([sys.executable, "-c", program], 0.1) as (parent, observer, _):
        for _records in observer.ticks(20):
            what = [event.what for event in observer.events if event.pid != parent.pid]
            if "it exited" in what:
                break
        assert what == ["joined", "it exited"]
        assert list(observer.members) == [parent.pid]
        assert observer.root_left is None


def test_exit_of_the_root_ends_the_ticks() -> None:
    with observed(python("watch_grower.py", "short", "0"), 0.1) as (_, observer, recorder):
        for records in observer.ticks(None):
            recorder.put(records)
        assert observer.root_left == "it exited"
    case = recorder.case()
    assert case.targets[0].exited_ns is not None
    assert all(isinstance(sample, Sample) for sample in case.samples)


def test_growth_after_exec_is_seen() -> None:
    with observed(python("watch_grower.py", "exec", "120"), 0.25) as (_, observer, recorder):
        for records in observer.ticks(11):
            recorder.put(records)
    assert verdict_of_trend(tree_trend(recorder.case())) == "growing"


def test_no_such_process() -> None:
    with pytest.raises(NoSuchProcess):
        TreeObserver(1 << 22).open()


def test_no_descriptor_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with observed(python("watch_grower.py", "parent", "0"), 0.1) as (_, observer, _recorder):
        for _records in observer.ticks(0.5):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_observer_is_not_a_member_of_the_tree() -> None:
    """A shell that its own child observes."""
    script = (
        "import os; from memforensics.jobs.observe.tree import TreeObserver\n"
        "with TreeObserver(os.getppid()) as observer:\n"
        "    observer.open(); print(os.getppid() in observer.members, os.getpid() in observer.members)"
    )
    shell = ["/bin/sh", "-c", '"$0" -c "$1"; true', sys.executable, script]
    assert subprocess.run(shell, capture_output=True, text=True, check=True).stdout.split() == ["True", "False"]
