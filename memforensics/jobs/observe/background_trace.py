"""A tracer that opens in the background: compiling, loading and learning its first stacks takes 1 to 3 s."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from memforensics.case.model import ProbeStatus
from memforensics.errors import MemforensicsError, TargetError
from memforensics.jobs.observe.recorder import Record, probe_failed
from memforensics.probes.base import Budget, Evidence
from memforensics.probes.ebpf.faults.probe import FaultTrace
from memforensics.probes.ebpf.mmap.probe import MmapTrace
from memforensics.target import Process

T = TypeVar("T", bound=MmapTrace | FaultTrace)


class BackgroundTrace(Generic[T]):
    """`start`, then `poll` at each tick, then `close`. An error of the tracer becomes a ProbeStatus."""

    def __init__(self, make: Callable[[], T | None], convert: Callable[[Iterable[Evidence]], Iterable[Record]]) -> None:
        """`make` runs in the background; None: no trace is wanted. `convert`: the records to keep of its evidence."""
        self.trace: T | None = None  # once it is open, until it is closed
        self._make, self._convert = make, convert
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="open-trace")
        self._opening: Future[tuple[T | None, list[Record]]] | None = None

    def start(self, members: list[Process], budget: Budget) -> None:
        self._opening = self._pool.submit(self._open, members, budget)

    def poll(self) -> Iterable[Record]:
        """What it found since the last call; its status once it is open."""
        yield from self._take_opened(wait=False)
        if self.trace is None:
            return
        try:
            yield from self._convert(self.trace.poll())
        except TargetError:
            return  # the observer's next tick says how it left
        except MemforensicsError as error:
            name = self.trace.name
            yield from self.close()
            yield probe_failed(name, error, status="partial")

    def close(self) -> Iterable[Record]:
        """Closes it; the last records. A second call does nothing."""
        yield from self._take_opened(wait=True)
        if self.trace is not None:
            trace, self.trace = self.trace, None
            yield from self._convert(trace.close())

    def _take_opened(self, *, wait: bool) -> list[Record]:
        if self._opening is None or not (wait or self._opening.done()):
            return []
        opening, self._opening = self._opening, None
        self._pool.shutdown(wait=False)
        self.trace, statuses = opening.result()
        return statuses

    def _open(self, members: list[Process], budget: Budget) -> tuple[T | None, list[Record]]:
        trace = self._make()
        if trace is None:
            return None, []
        try:
            able = trace.availability(members[0])
            if able.status != "unavailable":
                trace.open(members, budget)
        except TargetError:
            return None, []  # the observer's next tick says how it left
        except MemforensicsError as error:
            return None, [probe_failed(trace.name, error)]
        status = ProbeStatus(name=trace.name, status=able.status, why=able.why, enable=able.enable)
        return (None if able.status == "unavailable" else trace), [status]
