"""watch PID: live, RSS by layer, growth with its interval, time to the limit, verdict."""

import json
from typing import Annotated, Literal

import typer

from memforensics.cli.common import CmdlineOption, NameOption, PidArgument, RecordOption, choose_pid, duration_option

EXAMPLES = (
    "memforensics watch 4711",
    "memforensics watch 4711 --duration 2m --record leak.case",
    "memforensics watch --cmdline 'vllm serve' --json --until growing",
)


def watch(
    pid: PidArgument = None,
    name: NameOption = None,
    cmdline: CmdlineOption = None,
    children: Annotated[bool, typer.Option(help="Follow its child processes too.")] = True,
    interval: Annotated[float, duration_option("Time between two readings.", "--interval")] = "1s",  # type: ignore[assignment]
    duration: Annotated[float | None, duration_option("How long; without it, until Ctrl-C or its exit.")] = None,
    record: RecordOption = None,
    until: Annotated[
        Literal["growing", "leak"] | None, typer.Option(help="End as soon as this is the verdict.")
    ] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a line, one line a reading.")] = False,
) -> int:
    """Watch a process and its children: RSS by layer, growth with its interval, time to the limit, verdict.

    Ends with the exit code of the verdict: 0 steady or bounded, 1 leak, 4 growing or too little seen."""
    target = choose_pid(pid, name, cmdline)

    from rich.console import RenderableType

    from memforensics.cli import live
    from memforensics.errors import Interrupted, UsageError
    from memforensics.jobs.watch import WatchTick
    from memforensics.jobs.watch import watch as job
    from memforensics.report.watch_line import watch_object, watch_text

    if interval <= 0:
        raise UsageError("--interval must be more than 0", enable="--interval 1s")
    ticks = job(target, children=children, interval_s=interval, seconds=duration, record=record, until=until)

    def draw(tick: WatchTick, width: int) -> RenderableType:
        from memforensics.report.terminal_watch import watch_screen

        kept = f", kept in {record}" if record else ""
        return watch_screen(
            tick.case,
            tick.diagnosis,
            line=tick.line,
            events=[(event.pid, event.what) for event in tick.events],
            elapsed_s=tick.elapsed_s,
            footer=f"ended: {tick.ended}{kept}" if tick.ended else f"a reading each {interval:g} s{kept}; Ctrl-C ends",
            width=width,
        )

    try:
        if json_lines or not live.is_terminal():
            line = (lambda **k: json.dumps(watch_object(**k))) if json_lines else watch_text
            last = live.show_lines(
                ticks,
                lambda t: line(case=t.case, diagnosis=t.diagnosis, elapsed_s=t.elapsed_s, ended=t.ended),
            )
        else:
            last = live.show_live(ticks, draw)
    except KeyboardInterrupt:
        raise Interrupted(str(record) if record else None) from None
    return last.diagnosis.exit_code if last is not None else 4
