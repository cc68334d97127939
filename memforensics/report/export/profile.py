"""What every export is made of, and how every format names a frame."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from memforensics import __version__
from memforensics.case.model import AllocationSite, Anchor, Frame, Sample
from memforensics.case.views import TraceView
from memforensics.report.labels import LABELS, Labels, group_name, trust_sentences
from memforensics.text import basename, utf8, visible


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Sites and their context. Times are CLOCK_MONOTONIC nanoseconds, as in the case."""

    sites: Sequence[AllocationSite]
    title: str
    version: str  # of memforensics
    anchor: Anchor
    began_ns: int
    ended_ns: int
    executable: str | None = None  # of the process that the user named
    processes: Mapping[int, str] = field(default_factory=dict)  # pid -> its name
    names: Mapping[tuple[int, int], str] = field(default_factory=dict)  # (pid, site_id) -> name of its group
    samples: Sequence[Sample] = ()  # for formats with a time axis
    notes: Sequence[str] = ()  # coverage and losses
    labels: Labels = LABELS["mappings"]

    def process_name(self, pid: int) -> str:
        """4711 (python3)."""
        name = self.processes.get(pid)
        return f"{pid} ({text(name)})" if name else f"{pid}"

    def site_name(self, site: AllocationSite) -> str:
        name = self.names.get((site.pid, site.site_id))
        if name is None:
            name = frame_name(site.stack.frames[0]) if site.stack.frames else "unknown"
        return text(name)


Measure = tuple[str, str, Callable[[AllocationSite], int | None]]  # name, unit, value of a site


def measures(labels: Labels) -> tuple[Measure, ...]:
    """The figures of a site, outstanding bytes first."""
    return (
        (f"{labels.held} bytes", "bytes", lambda site: site.outstanding_bytes),
        (
            "resident bytes of outstanding memory",
            "bytes",
            lambda site: site.resident_bytes if labels.resident else None,
        ),
        (f"{labels.held} {labels.units}", labels.units, lambda site: site.outstanding_count),
        (f"{labels.allocated} bytes, freed or not", "bytes", lambda site: site.allocated_bytes),
        (f"{labels.allocations}, freed or not", labels.units, lambda site: site.allocated_count),
    )


def text(value: str) -> str:
    """One line without control characters that encodes as UTF-8. A target can have any names."""
    return visible(utf8(value))


def frame_name(frame: Frame) -> str:
    """The function, or its offset in the file if it has no symbol."""
    if frame.function:
        return text(frame.function)
    return f"+{frame.offset:#x}" if frame.offset is not None else "?"


def frame_place(frame: Frame) -> str:
    """service.py:101; libucs.so.0.0.0; empty when nothing is known."""
    if frame.kind == "python":
        line = f":{frame.line}" if frame.line is not None else ""
        return f"{text(basename(frame.file or '?'))}{line}"
    return text(basename(frame.module)) if frame.module else ""


def frame_source(frame: Frame) -> str | None:
    """The source file's path, if any is known."""
    return text(frame.file) if frame.file else None


def root_first(site: AllocationSite) -> list[Frame]:
    """The frames of the stack, outermost first, as flame graphs need them."""
    return list(reversed(site.stack.frames))


def profile_of(view: TraceView) -> Profile:
    """What every export is made of. Page cache is left out of faults. Hook frames are marked."""
    case, meta = view.case, view.case.meta
    marked = {_key(site): site for group in view.groups for site in group.sites}
    times = [t for trace in case.traces for t in (trace.began_ns, trace.ended_ns)] or [s.t_ns for s in case.samples]
    times = times or [meta.anchor.monotonic_ns]
    root = case.target(meta.root_pid) if meta.root_pid is not None else None
    of_process = f" of process {meta.root_pid}" if meta.root_pid is not None else ""
    labels = LABELS[view.family]
    return Profile(
        sites=[marked.get(_key(site), site) for site in view.sites if view.family != "faults" or not site.file_backed],
        title=f"memforensics {meta.command}{of_process}",
        version=__version__,
        anchor=meta.anchor,
        began_ns=min(times),
        ended_ns=max(times),
        executable=root.exe if root is not None else None,
        processes={target.pid: target.comm for target in case.targets},
        names={_key(site): group_name(group) for group in view.groups for site in group.sites},
        samples=case.samples,
        notes=trust_sentences(view),
        labels=labels,
    )


def _key(site: AllocationSite) -> tuple[int, int]:
    return site.pid, site.site_id
