"""Results of `case FILE` and `case symbolize FILE` as text."""

from memforensics.case.views import Listing, Symbolized
from memforensics.report.sentences import iso_time
from memforensics.text import visible
from memforensics.units import duration_text, size_text


def listing_text(case: Listing) -> str:
    """What made the case, when, its processes, and the rows of each table."""
    lines = [
        f"{visible(str(case.path))}  {size_text(case.file_bytes)}",
        f"  made by    memforensics {case.meta.memforensics_version}, {visible(case.meta.command)}"
        f" on {visible(case.meta.hostname or '?')} (Linux {visible(case.meta.kernel or '?')})",
    ]
    if case.seconds is not None:
        lines.append(f"  time       {iso_time(case.began_wall_ns) or '?'}, {duration_text(case.seconds)}")
    for target in case.targets:
        root = "  (named)" if target.pid == case.meta.root_pid else ""
        left = f"  left: {visible(target.left_how)}" if target.left_how else ""
        line = visible(" ".join(target.cmdline) or target.comm)
        lines.append(f"  process    {target.pid}{root}  {line[:90]}{left}")
    lines += [f"  {count:>9,}  {table}" for table, count in case.counts.items() if count]
    return "\n".join(lines) + "\n"


def symbolized_text(done: Symbolized) -> str:
    """How many frames got a name, and why others did not."""
    lines = [
        f"{visible(str(done.path))}: {done.named} frames got a function, {done.placed} got a file and line; "
        f"{done.inlined} inlined frames were added; {done.stacks_changed} stacks changed",
        f"  {done.known} frames were complete before; {sum(done.unnamed.values())} still have no function",
    ]
    for (module, build_id, why), count in done.unnamed.most_common():
        lines.append(f"  {count:>6}  {visible(module) or '?'}  {build_id or ''}  {why}".rstrip())
    return "\n".join(lines) + "\n"
