"""Where the ticks of watch go: a screen, lines, JSON lines; and beside it an alarm and a server of metrics."""

import contextlib
import json
from collections.abc import Generator
from pathlib import Path

from memforensics.cli import live
from memforensics.report.watch_line import WatchTick

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
                server.show(tick)
            yield tick


def show(ticks: Ticks, *, json_lines: bool, interval_s: float, record: Path | None) -> WatchTick | None:
    """Shows them as the place allows; the last one."""
    if not json_lines and live.is_terminal():
        return _show_live(ticks, interval_s, record)
    from memforensics.report.watch_line import watch_object, watch_text

    return live.show_lines(ticks, (lambda tick: json.dumps(watch_object(tick))) if json_lines else watch_text)


def _show_live(ticks: Ticks, interval_s: float, record: Path | None) -> WatchTick | None:
    """Draws each tick in place; the last one's screen stays. However it ends, the generator is closed."""
    from memforensics.cli.screen import Screen
    from memforensics.report.terminal_watch import WatchScreen

    kept = f", kept in {record}" if record else ""
    last: WatchTick | None = None
    with contextlib.closing(ticks), Screen() as screen:
        content = WatchScreen()
        for last in ticks:
            footer = (
                f"ended: {last.ended}{kept}" if last.ended else f"a reading each {interval_s:g} s{kept}; Ctrl-C ends"
            )
            screen.show(content.parts(last, footer=footer, width=screen.width), last=last.ended is not None)
    return last
