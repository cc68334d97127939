"""What stacks a tool really gave: parsers of the tools' outputs, and a verdict on what they hold.

A stack is a list of frame names, innermost first; a Python frame is "file.py:function", a frame without a name is "?".
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tracer_workloads import Kind

Stack = list[str]
MOST = 4000  # stacks looked at

BOTTOM = re.compile(
    r"^(_start|__libc_start_main.*|__libc_start_call_main|clone3?|__clone3?|start_thread"
    r"|\S+\.py:(<module>|Thread\._bootstrap|_bootstrap))$"  # of Python alone
)
_OFFSET = re.compile(r"\+0x[0-9a-f]+.*$|\+\d+$")


@dataclass(frozen=True, slots=True)
class Given:
    """What was found in a tool's output about one workload. Shares are of the events (or samples) that it counted."""

    events: int
    frames: float = 0.0  # named frames, the median
    whole: float = 0.0  # to where the thread began
    python: float = 0.0  # with a line of the workload's own Python file
    key: "Given | None" = None  # of those with the function that is looked for

    def words(self, kind: Kind) -> str:
        if not self.events:
            return "no stack"
        if self.frames <= 1:
            said = f"{self.frames:.0f} frame{'s' * (self.frames != 1)}"
        else:
            said = f"{self.frames:.0f} frames, whole {self.whole:.0%}"
            if kind.line:
                said += f", Python line {self.python:.0%}"
        if not kind.key or self.key is None:
            return said
        return f"{said}; the leak's: {self.key.words(replace(kind, key=())) if self.key.events else 'not seen'}"


def judged(stacks: Iterable[tuple[Stack, int]], kind: Kind) -> Given:
    counted = [(stack, count) for stack, count in stacks if count > 0]
    found = _judged(counted, kind)
    if not kind.key:
        return found
    return replace(found, key=_judged([(s, n) for s, n in counted if _has(s, kind.key)], kind))


def _has(stack: Stack, patterns: Iterable["re.Pattern[str]"]) -> bool:
    return all(any(pattern.match(frame) for frame in stack) for pattern in patterns)


def _judged(counted: list[tuple[Stack, int]], kind: Kind) -> Given:
    total = sum(count for _, count in counted)
    if not total:
        return Given(0)
    depths = sorted((sum(frame != "?" for frame in stack), count) for stack, count in counted)
    whole = sum(count for stack, count in counted if any(BOTTOM.match(frame) for frame in stack))
    python = sum(count for stack, count in counted if any(frame.startswith(f"{kind.line}:") for frame in stack))
    return Given(total, _weighted_median(depths), whole / total, python / total)


def _weighted_median(values: list[tuple[int, int]]) -> float:
    half, so_far = sum(weight for _, weight in values) / 2, 0
    for value, weight in values:
        so_far += weight
        if so_far >= half:
            return float(value)
    return float(values[-1][0])


def named(text: str) -> str:
    """A frame's function without offset, arguments and module; "?" when it has none."""
    name = _OFFSET.sub("", text.strip())
    return "?" if not name or name.startswith(("0x", "[unknown]", "??")) else name


# --- one parser a tool -----------------------------------------------------------------------------------------------


def of_memforensics(text: str) -> Iterator[tuple[Stack, int]]:
    """`--json` of trace-mmap and trace-faults; weighed by outstanding bytes where some stand, else one a site."""
    sites = json.JSONDecoder().raw_decode(text, text.index("{"))[0]["sites"]
    standing = any(site["outstanding_bytes"] for site in sites)
    for site in sites:
        stack = []
        for frame in site["stack"]:
            name = frame["function"] or "?"
            stack.append(f"{Path(frame['file'] or '?').name}:{name}" if frame["kind"] == "python" else named(name))
        yield stack, site["outstanding_bytes"] if standing else 1


def of_bpftrace(text: str) -> Iterator[tuple[Stack, int]]:
    for body, count in re.findall(r"^@\w*\[\n?(.*?)\]: (\d+)$", text, re.MULTILINE | re.DOTALL):
        yield [named(line) for line in body.splitlines() if line.strip()], int(count)


def of_perf_script(lines: Iterable[str]) -> Iterator[tuple[Stack, int]]:
    """`perf script -F event,ip,sym`: a line of the event, frames, an empty line. Without those of munmap."""
    stack: Stack | None = None
    seen, wanted = 0, True
    for line in lines:
        words = line.split(None, 1)
        if not words:
            if stack is not None and wanted:
                yield stack, 1
                seen += 1
                if seen >= MOST:
                    return
            stack = None
        elif stack is None:
            stack, wanted = [], "munmap" not in line
        elif re.fullmatch(r"[0-9a-f]+", words[0]):
            stack.append(named(words[1]) if len(words) == 2 else "?")


def of_gdb(text: str) -> Iterator[tuple[Stack, int]]:
    """`bt`: #0  0x... in mmap () from ...; the number begins again with each stack. Without those of munmap."""
    stack: Stack = []
    found = re.findall(r"^#(\d+) +(?:0x[0-9a-f]+ in )?([^\s(]+)", text, re.MULTILINE)
    for number, name in (*found, ("0", "")):
        if number == "0":
            if stack and "munmap" not in stack[0]:
                yield stack, 1
            stack = []
        stack.append(named(name))


def of_memleak(text: str) -> Iterator[tuple[Stack, int]]:
    """N bytes in M allocations from stack, then frames that are indented further."""
    blocks = re.findall(r"^\s*\d+ bytes in (\d+) allocations from stack\n((?:\t\t.*\n?)*)", text, re.MULTILINE)
    for count, body in blocks:
        frames = [re.sub(r"^0x[0-9a-f]+\s+", "", line.strip()) for line in body.splitlines() if line.strip()]
        yield [named(re.sub(r"(?<=\S)\s*\[[^\]]*\]$", "", frame)) for frame in frames], int(count)


def of_folded(text: str) -> Iterator[tuple[Stack, int]]:
    """main;middle;leaf 12 (heaptrack_print -F)."""
    for line in text.splitlines():
        path, _, count = line.rpartition(" ")
        if count.isdigit():
            yield [named(frame) for frame in reversed(path.split(";"))], int(count)


def of_calls(text: str) -> Iterator[tuple[Stack, int]]:
    """strace and perf trace as they are started here: calls without stacks, and that is what is checked."""
    for line in text.splitlines():
        if re.match(r"^\s*(> |#\d+ |[\w.:~<>]+ \([^)]*\.so|\S+\+0x[0-9a-f]+)", line):
            yield ["?"], 1
