"""When a run of limited length takes its snapshots."""

import time
from collections import defaultdict
from contextlib import closing

from memforensics.errors import MemforensicsError, TargetError
from memforensics.jobs.observe.recorder import Record, probe_failed
from memforensics.probes.proc.snapshot_cache import SnapshotCache
from memforensics.probes.proc.snapshots import take_snapshot
from memforensics.target import open_process

SNAPSHOTS = 6  # in one run, including the first and the last
MIN_INTERVAL_RATIO = 8.0  # the time between two snapshots is at least this many times the time that one takes


class SnapshotSchedule:
    """SNAPSHOTS rounds in `seconds`, the last one near the end; fewer if a round takes long. A round reads every
    member."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._interval_s = seconds, seconds / (SNAPSHOTS - 1)
        self._next_s = 0.0
        self._longest_s = 0.0  # that a round took
        self._round_s = 0.0  # that the present round has taken
        self._caches: defaultdict[int, SnapshotCache] = defaultdict(SnapshotCache)

    def is_due(self, elapsed_s: float) -> bool:
        return elapsed_s >= self._next_s

    def started(self, elapsed_s: float) -> None:
        """A round starts; sets the time of the next one."""
        self._longest_s, self._round_s = max(self._longest_s, self._round_s), 0.0
        gap = max(self._interval_s, MIN_INTERVAL_RATIO * self._longest_s)
        last = self._seconds - 1.5 * self._longest_s
        if elapsed_s + gap <= last:
            self._next_s = elapsed_s + gap
        else:
            self._next_s = last if elapsed_s + gap / 2 < last else float("inf")

    def fits_in(self, seconds: float) -> bool:
        """Whether one more round takes at most `seconds`."""
        return max(self._longest_s, self._round_s) < seconds

    def take(self, pid: int) -> list[Record]:
        """A snapshot of one process; nothing if it has left."""
        began = time.monotonic()
        try:
            with closing(open_process(pid)) as process:
                snapshot, losses = take_snapshot(process, cache=self._caches[pid])
        except TargetError:
            return []
        except MemforensicsError as error:
            return [probe_failed("snapshots", error, pid=pid)]
        self._round_s += time.monotonic() - began
        return [snapshot, *losses]
