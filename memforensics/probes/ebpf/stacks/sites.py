"""Sites: what one stack allocated or touched. The part that mappings and page faults share. Pure."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

from memforensics.case.model import AllocationSite, Cohort, SitePoint, Stack
from memforensics.probes.ebpf.loader.layout import NativePc, PythonFrame, StackEvent

MAX_POINTS = 1200  # of one site's timeline; every second point of a longer one is dropped
ALL_POINTS = 1 << 19  # of all sites of one address space
MAX_KERNEL_SITES = 1 << 15  # twice the kernel's table: stacks that were completed later take another entry


class DecodedStack:
    """One stack, leaf first. All that only the live process can tell was read when this was made. `stack` looks up
    names and lines in the mapped files, which may take a while; lines of a large file may come later."""

    __slots__ = (
        "_add_lines",
        "_drop_leaf_line",
        "_find_names",
        "_named",
        "_stack",
        "complete",
        "native",
        "python",
    )

    def __init__(
        self,
        native: tuple[NativePc, ...],
        python: tuple[PythonFrame, ...],
        complete: bool,
        find_names: Callable[[], Stack],
        add_lines: Callable[[Stack], tuple[Stack, bool]],  # and whether these are all
    ) -> None:
        self.native, self.python, self.complete = native, python, complete
        self._find_names: Callable[[], Stack] | None = find_names
        self._add_lines: Callable[[Stack], tuple[Stack, bool]] | None = add_lines
        self._named: Stack | None = None
        self._stack = Stack(frames=())
        self._drop_leaf_line = False

    @property
    def stack(self) -> Stack:
        if self._find_names is not None:
            self._named, self._find_names = self._find_names(), None
        if self._add_lines is not None and self._named is not None:
            self._stack, is_all = self._add_lines(self._named)
            if is_all:
                self._add_lines = None
            if self._drop_leaf_line:
                self.drop_leaf_line()
        return self._stack

    @property
    def is_named(self) -> bool:
        """Whether `stack` takes no time any more."""
        return self._named is not None

    def drop_leaf_line(self) -> None:
        """Several lines of the leaf function share this stack."""
        self._drop_leaf_line = True
        leaf = replace(self._stack.frames[0], line=None, file=None)
        self._stack = replace(self._stack, frames=(leaf, *self._stack.frames[1:]))


class Traffic(NamedTuple):
    """Bytes and blocks of one site."""

    outstanding_bytes: int
    outstanding_count: int
    allocated_bytes: int
    allocated_count: int
    freed_bytes: int
    freed_count: int
    first_ns: int
    last_ns: int


@dataclass(slots=True, eq=False)
class Site:
    """One stack and kind of memory."""

    number: int
    kind: str
    decoded: DecodedStack
    shared: bool = False
    file_backed: bool = False
    tmpfs: bool = False
    placed: bool = False
    timeline: list[SitePoint] = field(default_factory=list)

    def add_point(self, point: SitePoint, max_points: int = MAX_POINTS) -> bool:
        """Returns whether anything changed since the last point."""
        last = self.timeline[-1] if self.timeline else None
        self.timeline.append(point)
        if len(self.timeline) > max_points:
            del self.timeline[1:-1:2]
        now = point.outstanding_bytes, point.outstanding_count
        return last is None or (last.outstanding_bytes, last.outstanding_count) != now

    def allocation_site(
        self,
        pid: int,
        traffic: Traffic,
        resident_bytes: int | None,
        cohorts: tuple[Cohort, ...] = (),
        effective_births: int | None = None,
    ) -> AllocationSite:
        return AllocationSite(
            pid=pid,
            site_id=self.number,
            kind=self.kind,
            stack=self.decoded.stack,
            **traffic._asdict(),
            resident_bytes=resident_bytes,
            shared=self.shared,
            file_backed=self.file_backed,
            tmpfs=self.tmpfs,
            placed=self.placed,
            timeline=tuple(self.timeline),
            cohorts=cohorts,
            effective_births=effective_births,
        )


R = TypeVar("R", bound=Site)
SiteKey = tuple[object, ...]  # what tells one site from another


class SiteTable(Generic[R]):
    """The sites of one address space. Several sites of the kernel's may be one here: a stack that the kernel could not
    walk to its end gets a second number when user space completes it."""

    def __init__(self, site_type: type[R], numbers: "itertools.count[int]") -> None:
        self._site_type, self._numbers = site_type, numbers
        self._by_key: dict[SiteKey, R] = {}
        self._by_kernel: dict[int, R] = {}
        self.dropped = 0  # stacks for which there was no room

    def __iter__(self) -> Iterator[R]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, event: StackEvent, key: SiteKey, decoded: DecodedStack) -> R | None:
        """The site of that key, which the kernel calls `event.site`. None: there is no room."""
        if len(self._by_kernel) >= MAX_KERNEL_SITES and event.site not in self._by_kernel:
            self.dropped += 1
            return None
        site = self._by_key.get(key)
        if site is None:
            site = self._by_key[key] = self._site_type(
                number=next(self._numbers),
                kind=event.kind.name,
                decoded=decoded,
                shared=event.shared,
                file_backed=event.file_backed,
                tmpfs=event.tmpfs,
                placed=event.placed,
            )
        before = self._by_kernel.get(event.site)
        if before is None or not before.decoded.complete:  # the whole stack may follow its first part
            self._by_kernel[event.site] = site
        return site

    def get(self, kernel_site: int) -> R | None:
        return self._by_kernel.get(kernel_site)

    @property
    def max_points(self) -> int:
        """How long the timeline of one site may be."""
        return max(16, min(MAX_POINTS, ALL_POINTS // max(1, len(self._by_key))))
