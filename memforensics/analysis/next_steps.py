"""The next step for each finding and for the report: one command, runnable as printed. Pure.

The layer decides. A step never repeats the last command with the same options, and never names a process that has
ended."""

import shlex
from math import ceil

from memforensics.analysis.blame import HEAPS
from memforensics.case.model import Case, Finding, Growth, Layer, Target, Verdict
from memforensics.units import NS_PER_S, duration_text

SECONDS_TO_JUDGE = 20.0  # shortest observation that detects most leaks
LEFT_OUT = "..."  # replaces words of a command line that may be secret
STEP_EVIDENCE = "next"  # kind of evidence: a step that comes with the finding


def next_step_for_finding(case: Case, finding: Finding) -> str:
    """The next step for one finding."""
    target = case.target(finding.pid)
    if target is not None and has_ended(target):
        return _ended(case, target)
    if case.meta.command == "ci":
        return _from_remedies(case, finding) or _longer_ci(case)
    return _from_remedies(case, finding) or _asked_for(finding) or _by_layer(case, finding)


def next_step_for_report(
    case: Case, growth: Growth | None, verdict: Verdict, findings: tuple[Finding, ...]
) -> str | None:
    """The step of the first finding, or a command that leads to one. None if nothing grows."""
    pid = case.meta.root_pid
    root = case.target(pid) if pid is not None else None
    if verdict in ("steady", "bounded", "retention") and not any(f.next_step for f in findings):
        return None
    if root is not None and has_ended(root):
        return _ended(case, root)
    if verdict == "insufficient-data" or growth is None:
        return _longer(case, growth)
    first = next((f.next_step for f in findings if f.next_step), None)
    return first or f"find the code: {_run(case, f'diagnose {pid}', again=True)}"


def has_ended(target: Target) -> bool:
    return target.left_how is not None or target.exited_ns is not None


# --- a process that ended, or too short an observation ------------------------------------------------------------


def _ended(case: Case, target: Target) -> str:
    """Which process ended, and how to observe it from its start."""
    command = _command_of(target)
    lasted = duration_text(watched_seconds(case))
    ended = f"process {target.pid} has ended ({target.left_how or 'it exited'}) after {lasted} of observation"
    if command is None:
        start = f"{case.meta.program} ci --duration 60s --"
        return (
            f"{ended}. Observe it for at least {SECONDS_TO_JUDGE:.0f} s; to observe it from its start, put its command "
            f"after: {start}"
        )
    return f"{ended}. To observe it from its start: {case.meta.program} ci --duration 60s -- {command}"


def _command_of(target: Target | None) -> str | None:
    """Its command line for a shell. None if the case does not have all its words."""
    if target is None or not target.cmdline or LEFT_OUT in target.cmdline:
        return None
    return shlex.join(target.cmdline)


def _longer_ci(case: Case) -> str:
    """`ci` ends its command, so the step cannot name its PID."""
    root = case.target(case.meta.root_pid) if case.meta.root_pid is not None else None
    seconds = max(ceil(watched_seconds(case) / 30.0) * 60, 120)
    command = _command_of(root)
    run = f"{case.meta.program} ci --duration {seconds}s --"
    if command is None:
        return f"observe it for longer; put its command after: {run}"
    return f"observe it for longer: {run} {command}"


def _longer(case: Case, growth: Growth | None) -> str:
    if case.meta.command == "ci":
        return _longer_ci(case)
    pid, watched = case.meta.root_pid, watched_seconds(case)
    wait = growth.trend.seconds_to_decide if growth else None
    seconds = max(2 * watched, watched + (wait or 0.0), 60.0)
    whole = ceil(seconds / 30.0) * 30
    if case.meta.command == "watch":
        return f"watch it for longer: {case.meta.program} watch {pid} --duration {whole}s"
    return f"observe it for longer: {case.meta.program} diagnose {pid} --duration {whole}s"


def watched_seconds(case: Case) -> float:
    times = [sample.t_ns for sample in case.samples]
    return (max(times) - min(times)) / NS_PER_S if times else 0.0


# --- by cause, by evidence, by layer ------------------------------------------------------------------------------


def _from_remedies(case: Case, finding: Finding) -> str | None:
    """Measure the first remedy that is an environment variable; else apply the first remedy and check again."""
    if not finding.remedies:
        return None
    target = case.target(finding.pid)
    command = _command_of(target)
    first = next((remedy for remedy in finding.remedies if remedy.kind == "env"), None)
    if first is not None and command is not None:
        setting = shlex.quote(f"{first.name}={first.value}")
        return f"measure the remedy on a copy of the process: {case.meta.program} prove --env {setting} -- {command}"
    again = f", then check: {case.meta.program} ci --duration 60s -- {command}" if command else ""
    return f"apply the first remedy{again}"


def _asked_for(finding: Finding) -> str | None:
    return next((item.text for item in reversed(finding.evidence) if item.kind == STEP_EVIDENCE), None)


def _by_layer(case: Case, finding: Finding) -> str:
    pid, layer = finding.pid, finding.layer
    if layer in COMMANDS and not (layer in _JVM and not _has(case, pid, "jvm")):
        return COMMANDS[layer].format(pid=pid, run=case.meta.program, clone=_clone(case, pid))
    if not case.traces:
        return f"find the code: {_run(case, f'diagnose {pid}', again=True)}"
    faults = any(site.kind == "fault" and site.pid == pid for site in case.sites)
    if layer in HEAPS and finding.culprit is None and not faults:
        return f"trace which code touches the new memory: {case.meta.program} trace-faults {pid} --duration 30s"
    if layer in HEAPS and _has(case, pid, "cpython"):
        return (
            "show which Python lines hold memory (this runs code in the process, which needs memray): "
            f"{case.meta.program} heap {pid} --memray --duration 30s"
        )
    if layer in HEAPS:
        return f"capture the stacks that make the heap grow: {case.meta.program} stacks {pid} --on brk --count 5"
    return (
        "show which mappings stay longer than 30 s: "
        f"{case.meta.program} trace-mmap {pid} --duration 90s --min-age 30s --stacks"
    )


_JVM: tuple[Layer, ...] = ("jvm-heap", "jvm-native")
COMMANDS: dict[Layer, str] = {
    "thread-stack": "capture the stacks that start threads: {run} stacks {pid} --on {clone} --count 3",
    "shmem": "list the shared memory that it maps or has open, twice: ls -l /proc/{pid}/map_files /proc/{pid}/fd | "
    "grep -e /dev/shm -e memfd -e SYSV",
    "jvm-heap": "count its objects twice and compare (this pauses the JVM): jcmd {pid} GC.class_histogram",
    "jvm-native": "show which part of the JVM holds it, if it was started with -XX:NativeMemoryTracking=summary: "
    "jcmd {pid} VM.native_memory summary",
    "file": "show which files are mapped: {run} snapshot {pid} --top 30",
    "gpu": "show what each process holds on the GPU, every 5 s: nvidia-smi --query-compute-apps=pid,used_memory "
    "--format=csv -l 5",
    "device": "show which device memory is mapped: {run} snapshot {pid} --top 30",
    "allocator-retention": "show how much memory each allocator keeps: {run} snapshot {pid}",
}


def _has(case: Case, pid: int, runtime: str) -> bool:
    target = case.target(pid)
    return target is not None and any(found.name == runtime for found in target.runtimes)


def _clone(case: Case, pid: int) -> str:
    """The system call that starts a thread: glibc uses clone3 from 2.34 on (commit d8ea0d0168b1, "Add an internal
    wrapper for clone, clone2 and clone3")."""
    target = case.target(pid)
    version = next((found.version for found in target.runtimes if found.name == "glibc"), None) if target else None
    parts = [int(part) for part in (version or "").split(".") if part.isdigit()]
    return "clone3" if parts >= [2, 34] else "clone"


def _run(case: Case, words: str, *, again: bool = False) -> str:
    """The command line. `again`: with a longer duration if that command was the last one."""
    name = words.partition(" ")[0]
    longer = f" --duration {max(ceil(watched_seconds(case) / 30.0) * 60, 120)}s" if again else ""
    return f"{case.meta.program} {words}{longer if case.meta.command == name else ''}"
