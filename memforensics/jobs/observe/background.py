"""Work beside the ticks: readings that take longer than a tick, one after another in a thread of their own.

They only read, so a run that ends does not have to wait for them.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence

from memforensics.jobs.observe.tree import Record

Work = Callable[[], Sequence[Record]]
CLOSE_S = 5.0  # at most this long is the work under way waited for


class BackgroundTasks:
    """A queue of readings. What they found, and the first error that was not foreseen, come out of `take`."""

    def __init__(self) -> None:
        self._queue: deque[Work] = deque()
        self._found: list[Record] = []
        self._error: BaseException | None = None
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def run(self, work: Work) -> None:
        with self._change:
            self._queue.append(work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="background")
                self._thread.start()

    @property
    def busy(self) -> bool:
        return self._thread is not None

    def take(self) -> list[Record]:
        """What was found since the last call."""
        with self._change:
            found, self._found = self._found, []
            error, self._error = self._error, None
        if error is not None:
            raise error
        return found

    def wait(self, seconds: float = CLOSE_S) -> None:
        """Until all that was asked for is done, or that time is over."""
        with self._change:
            self._change.wait_for(lambda: self._thread is None, timeout=seconds)

    def close(self) -> None:
        """Drops what has not begun, and waits for what has."""
        with self._change:
            self._queue.clear()
        self.wait()

    def _work(self) -> None:
        while True:
            with self._change:
                if not self._queue:
                    self._thread = None
                    self._change.notify_all()
                    return
                work = self._queue.popleft()
            try:
                found: Sequence[Record] = work()
            except BaseException as error:  # noqa: BLE001 - handed to the thread that takes
                with self._change:
                    self._error = self._error or error
                continue
            with self._change:
                self._found.extend(found)
