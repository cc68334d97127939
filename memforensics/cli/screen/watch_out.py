"""The outputs of watch: a screen, lines or JSON lines, and with them an alarm and a metrics server."""

import contextlib
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

from memforensics.case.views import WatchTick
from memforensics.cli.common import say
from memforensics.cli.screen import live
from memforensics.cli.screen.keys import ReadKeys

Ticks = Generator[WatchTick, None, None]


def with_outputs(
    ticks: Ticks, *, on_leak: str | None, record: Path | None, prometheus: tuple[str, int] | None
) -> Ticks:
    """The same ticks; each goes to the alarm and the metrics server first. UsageError if either cannot start."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(ticks))
        alarm = server = None
        if on_leak is not None:
            from memforensics.jobs.watch.alarm import Alarm

            alarm = stack.enter_context(contextlib.closing(Alarm(on_leak, record)))
        if prometheus is not None:
            from memforensics.jobs.watch.metrics import MetricsServer
            from memforensics.report.prometheus import metrics

            address, port = prometheus
            server = stack.enter_context(contextlib.closing(MetricsServer(metrics, port, address)))
        for tick in ticks:
            if alarm is not None:
                alarm.notice(tick.case, tick.diagnosis)
            if server is not None:
                server.show(tick)
            yield tick


class Controls:
    """The keys of the live screen, read while the watch sleeps between two ticks: q ends it, ? opens the help."""

    def __init__(self) -> None:
        self.is_ending = self.is_helping = False
        self.read: ReadKeys | None = None  # None: there is no keyboard
        self.redraw: Callable[[], None] = lambda: None

    def stop(self) -> bool:
        return self.is_ending

    def sleep(self, seconds: float) -> None:
        """Sleeps until the time is over or q is pressed."""
        end = time.monotonic() + seconds
        if self.read is None:
            time.sleep(seconds)
            return
        while (left := end - time.monotonic()) > 0 and not self.is_ending:
            for key in self.read(left):
                self._press(key)

    def _press(self, key: str) -> None:
        if key == "q":
            self.is_ending = True
        elif key == "?" or (self.is_helping and key == "enter"):
            self.is_helping = not self.is_helping
            self.redraw()


def show(
    ticks: Ticks, controls: Controls, *, json_lines: bool, interval_s: float, record: Path | None
) -> WatchTick | None:
    """Shows the ticks, live on a terminal, else as lines; returns the last one. stderr says so if the case file can no
    longer be written."""
    ticks = _report_end_of_record(ticks, record, is_live=not json_lines and live.is_terminal())
    if not json_lines and live.is_terminal():
        return _show_live(ticks, controls, interval_s, record)
    if json_lines:
        from memforensics.report.json.shapes import json_bytes
        from memforensics.report.json.watch import watch

        return live.show_lines(ticks, lambda tick: json_bytes(watch(tick), indent=0).decode())
    from memforensics.report.watch_line import watch_line

    return live.show_lines(ticks, watch_line)


def _report_end_of_record(ticks: Ticks, record: Path | None, *, is_live: bool) -> Ticks:
    """The same ticks; says once that the case file ended: at once, or, on a live screen, after the last tick."""
    why: str | None = None
    try:
        with contextlib.closing(ticks):
            for tick in ticks:
                if why is None and tick.record_ended is not None:
                    why = tick.record_ended
                    if not is_live:
                        _say_record_ended(record, why)
                yield tick
    finally:
        if is_live and why is not None:
            _say_record_ended(record, why)


def _say_record_ended(record: Path | None, why: str) -> None:
    say(f"memforensics: {record} can no longer be written ({why}); the watch goes on without it", err=True)


def _show_live(ticks: Ticks, controls: Controls, interval_s: float, record: Path | None) -> WatchTick | None:
    """Draws each tick in place and leaves the last screen. The generator is closed however it ends."""
    from memforensics.cli.screen.keys import keys
    from memforensics.cli.screen.redraw import Screen
    from memforensics.report.terminal.watch import WatchScreen, help_parts

    last: WatchTick | None = None
    content = WatchScreen()
    with contextlib.closing(ticks), keys() as controls.read, Screen() as screen:
        how = "q ends, ? shows help" if controls.read is not None else "Ctrl-C ends"

        def draw(tick: WatchTick) -> None:
            case = f"case: {record}" if tick.record_ended is None else f"{record} can no longer be written"
            footer = f"one reading every {interval_s:g} s; {how}" + (f"; {case}" if record else "")
            if controls.is_helping and not tick.ended:
                screen.show(help_parts(tick, footer=f"one reading every {interval_s:g} s; ? closes this help"))
                return
            words = f"ended: {tick.ended}" if tick.ended else footer
            parts = content.parts(tick, footer=words, width=screen.width, case_file=str(record) if record else None)
            screen.show(parts, last=tick.ended is not None)

        for tick in ticks:
            last = tick
            controls.redraw = partial(draw, tick)
            draw(tick)
    return last
