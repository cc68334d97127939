"""Background tasks: readings that take longer than a tick run one after another in a thread of their own.

They only read, so a run that ends does not have to wait for them.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence

from memforensics.jobs.observe.recorder import Record

Task = Callable[[], Sequence[Record]]
CLOSE_S = 5.0  # the longest wait for the task that runs


class BackgroundTasks:
    """A queue of tasks. `take` returns what they found and raises the first error that a task did not handle."""

    def __init__(self) -> None:
        self._queue: deque[Task] = deque()
        self._found: list[Record] = []
        self._error: BaseException | None = None
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def run(self, task: Task) -> None:
        with self._change:
            self._queue.append(task)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="background")
                self._thread.start()

    @property
    def busy(self) -> bool:
        return self._thread is not None

    def take(self) -> list[Record]:
        """What the tasks found since the last call."""
        with self._change:
            found, self._found = self._found, []
            error, self._error = self._error, None
        if error is not None:
            raise error
        return found

    def wait(self, seconds: float = CLOSE_S) -> None:
        """Waits until the queue is empty, or for `seconds`."""
        with self._change:
            self._change.wait_for(lambda: self._thread is None, timeout=seconds)

    def close(self) -> None:
        """Drops the tasks that have not started and waits for the one that runs."""
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
                task = self._queue.popleft()
            try:
                found: Sequence[Record] = task()
            except BaseException as error:  # noqa: BLE001 - `take` raises it in the caller's thread
                with self._change:
                    self._error = self._error or error
                continue
            with self._change:
                self._found.extend(found)
