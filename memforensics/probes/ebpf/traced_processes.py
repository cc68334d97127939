"""The processes of a trace, and their address spaces by the numbers that the kernel's events carry."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from memforensics.case.model import Sample
from memforensics.errors import MemforensicsError
from memforensics.probes.ebpf.loader.layout import StackEvent
from memforensics.probes.ebpf.stacks.python_frames import PythonSide
from memforensics.probes.ebpf.stacks.unwind_rule_cache import RuleCache
from memforensics.target import Process, open_process

_FIRST_SPACE = 1 << 63  # numbers of address spaces that user space gives; the kernel's own are below
_PID = 0xFFFFFFFF  # of a space's number: whose it is
_COUNTER = 32  # bits below the kernel's own counter in it, which rises


class Space(Protocol):
    """One traced address space. `ended`: the process left it, what is known stays."""

    number: int
    ended: bool
    rule_cache: RuleCache
    python: PythonSide

    def stack(self, event: StackEvent) -> None: ...
    def end(self) -> None: ...


S = TypeVar("S", bound=Space)


@dataclass(slots=True)
class Member(Generic[S]):
    """One process of the trace. `process` was opened by us: the caller may close his."""

    process: Process
    space: S
    numbers: "itertools.count[int]"  # of its sites, whatever space they are of
    began_ns: int
    began: Sample | None  # None: it grew before we looked
    last: Sample | None = None
    left_ns: int | None = None
    former: list[S] = field(default_factory=list)  # before an exec

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def spaces(self) -> list[S]:
        return [*self.former, self.space]

    @property
    def growth(self) -> int | None:
        """Bytes, while we looked."""
        if self.began is None or self.last is None:
            return None
        return self.last.growth_metric - self.began.growth_metric


MakeSpace = Callable[[int, Process, "itertools.count[int]"], S]


class Members(Generic[S]):
    """`make_space` gets the number, the process, and the numbers of its sites; it may raise TargetGone and
    PermissionNeeded, as the methods that open a process do."""

    def __init__(self, make_space: MakeSpace[S], clock: Callable[[], int]) -> None:
        self._make_space, self._clock = make_space, clock
        self._by_pid: dict[int, Member[S]] = {}
        self.spaces: dict[int, S] = {}

    def __iter__(self) -> Iterator[Member[S]]:
        return iter(self._by_pid.values())

    def __len__(self) -> int:
        return len(self._by_pid)

    def __contains__(self, pid: int) -> bool:
        return pid in self._by_pid

    def __getitem__(self, pid: int) -> Member[S]:
        return self._by_pid[pid]

    @property
    def alive(self) -> list[Member[S]]:
        return [member for member in self if member.left_ns is None]

    def join(self, pid: int) -> Member[S]:
        """A process that user space found."""
        return self._open(_FIRST_SPACE | pid, pid)

    def met(self, number: int) -> Member[S] | None:
        """A child whose space is in an event for the first time. None: it is none, or it has left."""
        pid = number & _PID
        if number in self.spaces or number >= _FIRST_SPACE or pid in self._by_pid:
            return None
        try:
            member = self._open(number, pid)
        except MemforensicsError:
            return None
        member.began = None
        return member

    def of(self, number: int) -> Member[S] | None:
        """Whose space it is, now or formerly."""
        return self._by_pid.get(number & _PID)

    def is_former(self, space: S) -> bool:
        """Whether the process runs another program by now."""
        member = self.of(space.number)
        return member is not None and member.space is not space

    def runs_another(self, number: int) -> Member[S] | None:
        """The process that runs another program by now, in that space. None: this program is noted already, or the
        process is not traced."""
        member = self.of(number)
        return member if member is not None and _order(number) > _order(member.space.number) else None

    def execed(self, member: Member[S], number: int) -> bool:
        """Another program runs in the process, in a space of that number. False: it has left, which is noticed at the
        next look."""
        try:
            process = open_process(member.pid)
            space = self._make_space(number, process, member.numbers)
        except MemforensicsError:
            return False
        member.former.append(member.space)
        member.process.close()
        member.process, member.space = process, space
        self.spaces[number] = space
        with contextlib.suppress(MemforensicsError):
            member.began = process.sample(clock=self._clock)
        return True

    def look(self, now: int) -> list[Member[S]]:
        """Reads how large each is; those that left since the last look."""
        left = []
        for member in self.alive:
            with contextlib.suppress(MemforensicsError):
                sample = member.process.sample(clock=self._clock)
                if member.process.left_how() is None:
                    member.last = sample
                    continue
            member.left_ns = now
            member.space.end()
            left.append(member)
        return left

    def close(self) -> None:
        for member in self:
            member.process.close()

    def _open(self, number: int, pid: int) -> Member[S]:
        process = open_process(pid)
        try:
            numbers = itertools.count(1)
            space = self._make_space(number, process, numbers)
            member = Member(process, space, numbers, self._clock(), process.sample(clock=self._clock))
        except BaseException:
            process.close()
            raise
        self.spaces[number] = space
        self._by_pid[pid] = member
        return member


def _order(number: int) -> int:
    """Of the spaces of one process, the later has the higher."""
    return 0 if number >= _FIRST_SPACE else number >> _COUNTER
