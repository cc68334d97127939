"""Results of `hooks`, `stacks`, `heap` and `doctor` on a terminal."""

from collections.abc import Iterator

from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from memforensics.case.model import Hook
from memforensics.case.views import Examination, HeapView, HooksView, StacksView
from memforensics.report.sentences import frame_name, frame_place, hook_sentence
from memforensics.text import basename
from memforensics.units import counted_text, duration_text, rate_text, size_text

SITES_SHOWN = 10

# --- hooks ---------------------------------------------------------------------------------------------------------


def hooks_screen(view: HooksView) -> RenderableType:
    """One row for the hooks of one owner and mechanism, the jumps of the first hook, and what was compared."""
    parts: list[RenderableType] = []
    if view.hooks:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for title in ("function", "mechanism", "goes to", "how"):
            table.add_column(title, overflow="fold")
        for row in hook_rows(view):
            table.add_row(*map(Text, row))
        parts += [table, Text(" -> ".join(view.hooks[0].chain), style="dim")]
    return Lines(*parts, Text(hooks_summary(view)))


def hook_rows(view: HooksView) -> Iterator[tuple[str, str, str, str]]:
    """(functions, mechanism, what gets the call, how) for the hooks of one owner and mechanism."""
    groups: dict[tuple[str, str | None], list[Hook]] = {}
    for hook in view.hooks:
        groups.setdefault((hook.mechanism, hook.owner_path), []).append(hook)
    for (mechanism, path), hooks in groups.items():
        owner = basename(path) if path else "memory without a file"
        version = f" {hooks[0].owner_version}" if hooks[0].owner_version else ""
        yield ", ".join(hook.function for hook in hooks), mechanism, owner + version, hook_sentence(hooks)


def hooks_summary(view: HooksView) -> str:
    """What was compared, and the result, in one sentence or two."""
    compared = (
        f"Compared {view.audit.got_slots} GOT slots of {view.audit.objects_read} objects with their bindings, and "
        f"{view.audit.entries_compared} function entries with their files."
    )
    if not view.hooks:
        return f"No watched function is intercepted. {compared}"
    if all(hook.mechanism == "inline" for hook in view.hooks):
        return f"{compared} The code is patched and the GOT is unchanged: a check of GOT slots alone finds nothing."
    return compared


# --- stacks --------------------------------------------------------------------------------------------------------


def stacks_text(view: StacksView) -> str:
    """Each captured call with its stack, and how long the process was stopped."""
    lines: list[str] = []
    for capture in view.captures:
        arguments = ", ".join(f"{name}={_argument(name, value)}" for name, value in capture.arguments)
        returned = "" if capture.returned is None else f" = {_argument('', capture.returned)}"
        lines.append(f"{capture.function}({arguments}){returned}   thread {capture.tid}, {capture.pause_ms:.1f} ms")
        lines += [f"    {frame_name(frame)}  {frame_place(frame)}" for frame in capture.stack.frames]
        lines += ["    ... (more frames could not be read)"] if not capture.stack.complete else []
        lines.append("")
    lines.append(
        f"{counted_text(len(view.captures), 'stack')} captured. Stopped for {view.total_ms:.1f} ms in total, "
        f"{view.longest_ms:.1f} ms at most (attaching stops all threads, a capture stops only the calling thread)."
    )
    return "\n".join(lines)


def _argument(name: str, value: int) -> str:
    """Addresses and flags in hexadecimal, other numbers as decimals."""
    return hex(value) if value >= 1 << 32 or name in ("flags", "prot") else str(value)


# --- heap ----------------------------------------------------------------------------------------------------------


def heap_text(view: HeapView) -> str:
    """What memray saw, and the largest sites with their Python stacks."""
    profile = view.profile
    lines = [
        f"{profile.tool} tracked process {profile.pid} ({view.target.comm}) for {duration_text(profile.seconds)}: "
        f"{size_text(profile.allocated_bytes)} allocated in {counted_text(profile.allocated_count, 'allocation')}, "
        f"{size_text(profile.outstanding_bytes)} of it still held. The process was stopped for {view.pause.ms:.0f} ms.",
        "Held memory alone does not prove a leak: a cache or a batch in progress holds memory too.",
        "",
    ]
    for site in view.sites[:SITES_SHOWN]:
        rate = view.rate(site.outstanding_bytes)
        per_minute = f", {rate_text(rate)}" if rate is not None else ""
        count = counted_text(site.outstanding_count, "allocation")
        lines.append(f"{size_text(site.outstanding_bytes)} in {count}{per_minute}")
        lines += [f"    {frame_name(frame)}  {frame_place(frame)}" for frame in site.stack.frames]
    if len(view.sites) > SITES_SHOWN:
        lines.append(f"... and {len(view.sites) - SITES_SHOWN} more sites (--json, --record)")
    return "\n".join(lines)


# --- doctor --------------------------------------------------------------------------------------------------------


def doctor_screen(examination: Examination) -> RenderableType:
    """One row a check, with what enables what is missing, and whether diagnose works here."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for check in examination.checks:
        mark, style = ("ok", "green") if check.ok else ("NO", "bold red") if check.essential else ("no", "yellow")
        what = Text(check.why)
        if check.enable and not check.ok:
            what.append(f"\ndo: {check.enable}", style="cyan")
        table.add_row(Text(mark, style=style), Text(check.name), what)
    missing = [check.name for check in examination.checks if check.essential and not check.ok]
    if missing:
        end = Text(f"diagnose is limited here, or cannot run. Missing: {', '.join(missing)}.", style="bold")
    else:
        end = Text("diagnose can run fully here, with stacks.")
    return Lines(table, Text(), end)
