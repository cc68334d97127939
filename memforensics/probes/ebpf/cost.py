"""What a trace costs: reads the run time of its programs and the CPU time of what is traced, and holds the bound."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from memforensics.case.model import Cost
from memforensics.errors import MemforensicsError
from memforensics.probes.ebpf.loader.program_set import StackPrograms
from memforensics.probes.ebpf.overhead import Governor, Reading, RunTimes, Times, cpu_ns
from memforensics.target import Process

READ_INTERVAL_S = 0.5
FIRST_READ_INTERVAL_S = 0.1  # before recording starts


class CostMeter:
    """`bound`: the share of the traced CPU time that the trace may take; None: as much as it needs. `alive`: the
    processes that are traced. `observer_cpu_s`: our own CPU time when the trace was opened."""

    def __init__(
        self,
        programs: StackPrograms,
        bound: float | None,
        alive: Callable[[], Iterable[Process]],
        observer_cpu_s: float,
    ) -> None:
        self._programs, self._alive = programs, alive
        self.governor = Governor(bound, self._set_level)
        self.sample_period = programs.sample_period  # the longest so far
        self._times = RunTimes()
        self._times_before = Times()  # recording started
        self._cpu_s_before = observer_cpu_s
        self._next_read = 0.0

    def start(self) -> None:
        self.governor.start(self._read())

    def start_recording(self) -> None:
        """What ran until now only learned stacks."""
        self._read()
        self._times_before = self._times.times

    def poll(self, interval_s: float = READ_INTERVAL_S) -> None:
        """Reads when it is due, and changes how densely stacks are sampled."""
        now = time.monotonic()
        if now >= self._next_read:
            self._next_read = now + interval_s
            self.update()

    def update(self) -> None:
        self.governor.update(self._read())

    def cost(self, probe: str, *, is_counted: bool) -> Cost:
        """`is_counted`: the kernel counts run time."""
        cost = Cost(
            probe=probe,
            target_share=self.governor.reached,
            asked_share=self.governor.share,
            observer_cpu_s=time.process_time() - self._cpu_s_before,
        )
        if not is_counted:
            return cost
        target_ns, target_runs, host_ns, host_runs = (
            now - before for now, before in zip(self._times.times, self._times_before, strict=True)
        )
        return replace(
            cost,
            bpf_run_ns=target_ns + host_ns,
            bpf_runs=target_runs + host_runs,
            target_run_ns=target_ns,
            target_runs=target_runs,
        )

    def _read(self) -> Reading | None:
        """None where the kernel does not count, or does not let us."""
        stats = self._programs.run_stats()
        if stats is None:
            return None
        self._times.add(stats)
        ticks = os.sysconf("SC_CLK_TCK")
        times = {}
        for process in self._alive():
            with contextlib.suppress(MemforensicsError, ValueError):
                times[process.pid] = cpu_ns(process.read_text("stat"), ticks)
        return Reading(self._times.times.target_ns, times)

    def _set_level(self, level: int) -> None:
        self._programs.set_sampling_level(level)
        self.sample_period = max(self.sample_period, self._programs.sample_period)
        self._programs.engine.restart_run_counts()
