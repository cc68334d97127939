"""The JSON of `case FILE` and `case symbolize FILE`."""

from typing import Annotated

from memforensics.case.views import Listing, Symbolized
from memforensics.report.json import shapes
from memforensics.report.json.shapes import BuildId, Pid, doc, shaped
from memforensics.report.sentences import iso_time


class CaseTarget(shapes.Shape):
    """One process of a case."""

    pid: Pid
    comm: Annotated[str, doc("Its name in the kernel.")]
    cmdline: Annotated[tuple[str, ...], doc("The words of the command line.")]
    role: Annotated[str | None, doc("vLLM engine, llama-server, ...; null when the command line does not say.")]
    left: Annotated[str | None, doc("How it exited while observed.")]


class CaseListing(shapes.Shape):
    """What case FILE prints."""

    path: Annotated[str, doc("The case file.")]
    file_bytes: Annotated[int, doc("Its size, with its write-ahead log.")]
    schema: Annotated[int, doc("Version of its tables.")]
    memforensics: Annotated[str, doc("The version that made it.")]
    command: Annotated[str, doc("diagnose, watch, ...")]
    hostname: Annotated[str, doc("The host that made it.")]
    kernel: Annotated[str, doc("Kernel release.")]
    began: Annotated[str | None, doc("ISO 8601, UTC; null: nothing in it has a time.")]
    ended: Annotated[str | None, doc("ISO 8601, UTC.")]
    seconds: Annotated[float | None, doc("From the first to the last.")]
    targets: Annotated[tuple[CaseTarget, ...], doc("The processes.")]
    tables: Annotated[dict[str, int], doc("Table -> rows.")]


def listing(view: Listing) -> CaseListing:
    return CaseListing(
        path=str(view.path),
        file_bytes=view.file_bytes,
        schema=view.schema,
        memforensics=view.meta.memforensics_version,
        command=view.meta.command,
        hostname=view.meta.hostname,
        kernel=view.meta.kernel,
        began=iso_time(view.began_wall_ns),
        ended=iso_time(view.ended_wall_ns),
        seconds=view.seconds,
        targets=tuple(shaped(CaseTarget, target, left=target.left_how) for target in view.targets),
        tables=dict(view.counts),
    )


class Unnamed(shapes.Shape):
    """Frames of one module that have no function."""

    module: Annotated[str, doc("Path of the mapped file; empty: code without a file.")]
    build_id: BuildId
    why: Annotated[str, doc("Why there is no name.")]
    frames: Annotated[int, doc("Frames, each place once.")]


class SymbolizedCase(shapes.Shape):
    """What case symbolize prints."""

    case: Annotated[str, doc("The case file.")]
    stacks_changed: Annotated[int, doc("Stacks that changed.")]
    named: Annotated[int, doc("Frames that got a function.")]
    placed: Annotated[int, doc("Frames that got a file and line.")]
    known: Annotated[int, doc("Frames that had both before.")]
    inlined: Annotated[int, doc("Frames of inlined functions that were added.")]
    unnamed: Annotated[tuple[Unnamed, ...], doc("Frames without a function, the most first.")]


def symbolized(view: Symbolized) -> SymbolizedCase:
    unnamed = tuple(
        Unnamed(module=module, build_id=build_id, why=why, frames=count)
        for (module, build_id, why), count in view.unnamed.most_common()
    )
    return shaped(SymbolizedCase, view, case=str(view.path), unnamed=unnamed)
