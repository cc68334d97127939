"""The JSON of `hooks`, `stacks`, `heap` and `doctor`."""

from typing import Annotated

from memforensics.case import model
from memforensics.case.views import Examination, HeapView, HooksView, StacksView
from memforensics.report.json import shapes
from memforensics.report.json.shapes import BuildId, Pid, doc, shaped


class Audit(shapes.Shape):
    """What the audit compared."""

    functions: Annotated[tuple[str, ...], doc("The watched functions.")]
    objects_read: Annotated[int, doc("Loaded objects that were read.")]
    objects_unread: Annotated[int, doc("Loaded objects that could not be read.")]
    got_slots: Annotated[int, doc("GOT slots of watched functions that were compared.")]
    entries_compared: Annotated[int, doc("Function entries whose code was compared with the file.")]


class Module(shapes.Shape):
    """A mapped file."""

    path: Annotated[str, doc("As in /proc/PID/maps.")]
    version: Annotated[str | None, doc("Its version, read from the file.")]
    version_how: Annotated[str | None, doc("Where the version was read.")]
    build_id: BuildId


class Hooks(shapes.Shape):
    """What hooks prints."""

    pid: Pid
    hooks: Annotated[tuple[shapes.Hook, ...], doc("Watched functions that do not run their own library's code first.")]
    audit: Audit
    modules: Annotated[tuple[Module, ...], doc("The mapped files that were read.")]
    losses: shapes.Losses


def hooks(view: HooksView) -> Hooks:
    return Hooks(
        pid=view.target.pid,
        hooks=tuple(shapes.hook(hook, view.meanings.get(hook.function)) for hook in view.hooks),
        audit=shaped(Audit, view.audit),
        modules=tuple(shaped(Module, module) for module in view.modules),
        losses=shapes.losses(view.losses),
    )


class Capture(shapes.Shape):
    """One stop in the debugger."""

    pid: Pid
    tid: Annotated[int, doc("The thread.")]
    t_ns: Annotated[int, doc("When, CLOCK_MONOTONIC nanoseconds.")]
    function: Annotated[str, doc("The system call or function that it stopped on.")]
    arguments: Annotated[dict[str, int], doc("Name -> value.")]
    returned: Annotated[int | None, doc("The result of the call; null: not read.")]
    pause_ms: Annotated[float, doc("How long the thread was stopped, milliseconds.")]
    complete: Annotated[bool, doc("The walk reached the thread's first frame.")]
    doubtful: Annotated[bool, doc("Python and native frames did not match one to one.")]
    stack: shapes.Stack


class Stacks(shapes.Shape):
    """What stacks prints."""

    pid: Pid
    captures: Annotated[tuple[Capture, ...], doc("In order of time.")]
    pause_ms: shapes.PauseMs
    losses: shapes.Losses


def stacks(view: StacksView) -> Stacks:
    return Stacks(
        pid=view.target.pid,
        captures=tuple(map(capture, view.captures)),
        pause_ms=shapes.PauseMs(total=view.total_ms, longest=view.longest_ms),
        losses=shapes.losses(view.losses),
    )


def capture(stop: model.CapturedStack) -> Capture:
    stack = stop.stack
    return shaped(
        Capture,
        stop,
        arguments=dict(stop.arguments),
        complete=stack.complete,
        doubtful=stack.doubtful,
        stack=stack.frames,
    )


class Heap(shapes.Shape):
    """What heap --memray prints."""

    pid: Pid
    tool: Annotated[str, doc("The profiler.")]
    seconds: Annotated[float, doc("How long it tracked.")]
    allocated_bytes: Annotated[int, doc("Bytes allocated while it tracked.")]
    allocated_count: Annotated[int, doc("Allocations.")]
    outstanding_bytes: Annotated[int, doc("Bytes of them that were not freed.")]
    peak_bytes: Annotated[int | None, doc("The most that was outstanding at one time.")]
    sites: Annotated[tuple[shapes.TracedSite, ...], doc("The largest outstanding, by Python stack.")]
    pause_ms: shapes.PauseMs
    losses: shapes.Losses


def heap(view: HeapView) -> Heap:
    return shaped(
        Heap,
        view.profile,
        sites=tuple(shapes.traced_site(site, view.rate(site.outstanding_bytes)) for site in view.sites),
        pause_ms=shapes.PauseMs(total=view.pause.ms, longest=None),
        losses=shapes.losses(view.losses),
    )


class Check(shapes.Shape):
    """One check of the host or of a process."""

    name: Annotated[str, doc("What was checked.")]
    ok: Annotated[bool, doc("Whether it is available.")]
    why: Annotated[str, doc("What was found.")]
    enable: Annotated[str, doc("The command or setting that enables it; empty when ok.")]
    essential: Annotated[bool, doc("diagnose with stacks does not work fully without it.")]


class Doctor(shapes.Shape):
    """What doctor prints."""

    checks: Annotated[tuple[Check, ...], doc("The fundamental ones first.")]


def doctor(examination: Examination) -> Doctor:
    return shaped(Doctor, examination)
