"""Where the ticks of watch go: a screen, lines, JSON lines; and beside it an alarm and a server of metrics."""

import contextlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from memforensics.cli import live
from memforensics.jobs.watch import WatchTick

if TYPE_CHECKING:
    from rich.console import RenderableType

Ticks = Generator[WatchTick, None, None]


def beside(ticks: Ticks, *, on_leak: str | None, record: Path | None, prometheus: tuple[str, int] | None) -> Ticks:
    """The same ticks, each told to the alarm and the metrics server first. UsageError when either cannot be."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(ticks))
        alarm = server = None
        if on_leak is not None:
            from memforensics.jobs.alarm import Alarm

            alarm = stack.enter_context(contextlib.closing(Alarm(on_leak, record)))
        if prometheus is not None:
            from memforensics.jobs.metrics import MetricsServer

            address, port = prometheus
            server = stack.enter_context(contextlib.closing(MetricsServer(port, address)))
        for tick in ticks:
            if alarm is not None:
                alarm.notice(tick.case, tick.diagnosis)
            if server is not None:
                server.show(tick.case, tick.diagnosis)
            yield tick


def show(ticks: Ticks, *, json_lines: bool, interval_s: float, record: Path | None) -> WatchTick | None:
    """Shows them as the place allows; the last one."""
    if not json_lines and live.is_terminal():
        return live.show_live(ticks, lambda tick, width: _screen(tick, width, interval_s, record))
    from memforensics.report.watch_line import watch_object, watch_text

    def line(tick: WatchTick) -> str:
        words = {"elapsed_s": tick.elapsed_s, "ended": tick.ended}
        if json_lines:
            return json.dumps(watch_object(tick.case, tick.diagnosis, **words))  # type: ignore[arg-type]
        return watch_text(tick.case, tick.diagnosis, **words)  # type: ignore[arg-type]

    return live.show_lines(ticks, line)


def _screen(tick: WatchTick, width: int, interval_s: float, record: Path | None) -> "RenderableType":
    from memforensics.report.terminal_watch import watch_screen

    kept = f", kept in {record}" if record else ""
    return watch_screen(
        tick.case,
        tick.diagnosis,
        line=tick.line,
        events=[(event.pid, event.what) for event in tick.events],
        elapsed_s=tick.elapsed_s,
        footer=f"ended: {tick.ended}{kept}" if tick.ended else f"a reading each {interval_s:g} s{kept}; Ctrl-C ends",
        width=width,
    )
