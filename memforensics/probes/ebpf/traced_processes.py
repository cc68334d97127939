"""The processes of a trace, and their address spaces by the numbers that the kernel's events carry."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from memforensics.case.model import AllocationSite, Sample
from memforensics.errors import MemforensicsError
from memforensics.probes.ebpf.loader.layout import RangeEvent, StackEvent
from memforensics.probes.ebpf.stacks.decoder import StackDecoder
from memforensics.target import Process, open_process

# The number of an address space: its process's PID below, a counter of the kernel's programs above. User space sets the
# highest bit in the numbers that it gives.
_PID_MASK = 0xFFFFFFFF
_COUNTER_SHIFT = 32
_BY_USER_SPACE = 1 << 63


class Space(Protocol):
    """One traced address space. What is known of it stays after its process exits."""

    number: int
    stacks: StackDecoder

    @property
    def has_sites(self) -> bool: ...
    def add_stack(self, event: StackEvent) -> None: ...
    def handle(self, event: RangeEvent) -> None:
        """An event of memory."""

    def update_counts(self, counts: Iterable[tuple[int, Any]]) -> None:
        """The kernel's counters by its sites."""

    def release_all(self) -> None:
        """exec: nothing of the space is outstanding any more."""

    def reports(self, ended_ns: int) -> Iterator[AllocationSite]: ...
    def end(self) -> None:
        """The process exited or runs another program."""


S = TypeVar("S", bound=Space)


@dataclass(slots=True)
class TracedProcess(Generic[S]):
    """`process` is our own handle; the caller may close theirs. `former`: its spaces before each exec."""

    process: Process
    space: S
    site_numbers: "itertools.count[int]"  # shared by all its spaces
    began_ns: int
    first: Sample | None  # None: it grew before it was first sampled
    last: Sample | None = None
    exited_ns: int | None = None
    former: list[S] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def spaces(self) -> list[S]:
        return [*self.former, self.space]

    @property
    def growth(self) -> int | None:
        """Bytes since the first sample."""
        if self.first is None or self.last is None:
            return None
        return self.last.growth_metric - self.first.growth_metric


OpenSpace = Callable[[int, Process, "itertools.count[int]"], S]


class TracedProcesses(Generic[S]):
    """`open_space` gets the number of the space, the process and its site numbers. It may raise TargetGone and
    PermissionNeeded, and so may the methods that open a process."""

    def __init__(self, open_space: OpenSpace[S], clock: Callable[[], int]) -> None:
        self._open_space, self._clock = open_space, clock
        self._by_pid: dict[int, TracedProcess[S]] = {}
        self.spaces: dict[int, S] = {}

    def __iter__(self) -> Iterator[TracedProcess[S]]:
        return iter(self._by_pid.values())

    def __len__(self) -> int:
        return len(self._by_pid)

    def __contains__(self, pid: int) -> bool:
        return pid in self._by_pid

    def __getitem__(self, pid: int) -> TracedProcess[S]:
        return self._by_pid[pid]

    @property
    def alive(self) -> list[TracedProcess[S]]:
        return [traced for traced in self if traced.exited_ns is None]

    def add(self, pid: int) -> TracedProcess[S]:
        """A process that user space found."""
        return self._open(_BY_USER_SPACE | pid, pid)

    def add_child(self, number: int) -> TracedProcess[S] | None:
        """The child whose space an event names for the first time. None: it is not new, or has exited."""
        pid = number & _PID_MASK
        if number in self.spaces or number >= _BY_USER_SPACE or pid in self._by_pid:
            return None
        try:
            child = self._open(number, pid)
        except MemforensicsError:
            return None
        child.first = None
        return child

    def is_former(self, space: S) -> bool:
        """Whether the process runs another program now."""
        traced = self._of(space.number)
        return traced is not None and traced.space is not space

    def with_new_program(self, number: int) -> TracedProcess[S] | None:
        """The process that runs another program now, in that space. None: that is known, or the process is not
        traced."""
        traced = self._of(number)
        return traced if traced is not None and _order(number) > _order(traced.space.number) else None

    def replace_program(self, traced: TracedProcess[S], number: int) -> bool:
        """Opens the space of a new program. False: the process has exited."""
        try:
            process = open_process(traced.pid)
            space = self._open_space(number, process, traced.site_numbers)
        except MemforensicsError:
            return False
        traced.former.append(traced.space)
        traced.process.close()
        traced.process, traced.space = process, space
        self.spaces[number] = space
        with contextlib.suppress(MemforensicsError):
            traced.first = process.sample(clock=self._clock)
        return True

    def sample(self, now: int) -> list[TracedProcess[S]]:
        """Samples each process; returns those that exited since the last time."""
        exited = []
        for traced in self.alive:
            with contextlib.suppress(MemforensicsError):
                sample = traced.process.sample(clock=self._clock)
                if traced.process.left_how() is None:
                    traced.last = sample
                    continue
            traced.exited_ns = now
            traced.space.end()
            exited.append(traced)
        return exited

    def close(self) -> None:
        for traced in self:
            traced.process.close()

    def _of(self, number: int) -> TracedProcess[S] | None:
        return self._by_pid.get(number & _PID_MASK)

    def _open(self, number: int, pid: int) -> TracedProcess[S]:
        process = open_process(pid)
        try:
            site_numbers = itertools.count(1)
            space = self._open_space(number, process, site_numbers)
            traced = TracedProcess(process, space, site_numbers, self._clock(), process.sample(clock=self._clock))
        except BaseException:
            process.close()
            raise
        self.spaces[number] = space
        self._by_pid[pid] = traced
        return traced


def _order(number: int) -> int:
    """Later spaces of one process have higher numbers."""
    return 0 if number >= _BY_USER_SPACE else number >> _COUNTER_SHIFT
