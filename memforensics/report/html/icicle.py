"""One self-contained HTML page: an icicle (or flame) chart of the sites, and a table of them that needs no script.

The content security policy of the page forbids every request, and every style or script except its own two. Text from
the target is escaped in the table. In the data of the chart it cannot end the script element, and the script inserts it
as text only.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from memforensics.case.model import AllocationSite, Frame
from memforensics.report.export.profile import (
    Profile,
    frame_name,
    frame_place,
    frame_source,
    measures,
    root_first,
    text,
)
from memforensics.report.labels import kind_text
from memforensics.units import duration_text, size_text

SITES_LISTED = 200


def icicle(profile: Profile) -> bytes:
    """The page, UTF-8."""
    tree = _Tree()
    nodes = [tree.add(profile, site) for site in profile.sites]
    style, script, page = (_part(f"icicle.{kind}") for kind in ("css", "js", "html"))
    listed = sorted(zip(profile.sites, nodes, strict=True), key=lambda pair: -pair[0].outstanding_bytes)
    listed = [(site, node) for site, node in listed if site.outstanding_bytes > 0]
    left_out = len(listed) - SITES_LISTED
    values = {
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        "title": _escaped(profile.title),
        "style": style,
        "script": script,
        "facts": _escaped(_facts(profile)),
        "notes": _notes(profile.notes),
        "sites": "\n".join(_row(profile, site, node) for site, node in listed[:SITES_LISTED]),
        "left_out": f"<p>and {left_out:,} more sites; the chart shows all of them</p>" if left_out > 0 else "",
        "version": _escaped(profile.version),
        "data": _in_script(tree.data(profile, nodes)),
        "meaning": _escaped(profile.labels.meaning),
        "held": _escaped(profile.labels.held),
        "units": _escaped(profile.labels.units),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], page).encode()


@dataclass(slots=True)
class _Tree:
    """Stacks joined at their common callers. Node 0 is the root; a parent comes before its children."""

    frames: dict[tuple[str, str, str, str], int] = field(default_factory=dict)  # name, place, kind, source
    parent: list[int] = field(default_factory=lambda: [-1])
    frame: list[int] = field(default_factory=lambda: [0])
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.frames[("all", "", "all", "")] = 0

    def add(self, profile: Profile, site: AllocationSite) -> int:
        """The node of the site's innermost frame."""
        node = self._child(0, (f"process {profile.process_name(site.pid)}", "", "process", ""))
        for frame in root_first(site):
            node = self._child(node, _described(frame))
        return node

    def data(self, profile: Profile, nodes: Sequence[int]) -> dict[str, Any]:
        measured: list[dict[str, Any]] = []
        for name, unit, value in measures(profile.labels):
            own = [0] * len(self.parent)
            for site, node in zip(profile.sites, nodes, strict=True):
                own[node] += max(0, value(site) or 0)
            if any(own) or not measured:
                measured.append({"name": name, "unit": unit, "self": own})
        return {"frames": list(self.frames), "parent": self.parent, "frame": self.frame, "measures": measured}

    def _child(self, parent: int, described: tuple[str, str, str, str]) -> int:
        frame = self.frames.setdefault(described, len(self.frames))
        known = self._children.get((parent, frame))
        if known is None:
            known = self._children[(parent, frame)] = len(self.parent)
            self.parent.append(parent)
            self.frame.append(frame)
        return known


def _described(frame: Frame) -> tuple[str, str, str, str]:
    source = frame_source(frame) or (text(frame.module) if frame.module else "")
    line = f":{frame.line}" if frame.line is not None and frame.file else ""
    return frame_name(frame), frame_place(frame), frame.kind, f"{source}{line}"


def _facts(profile: Profile) -> str:
    total = sum(site.outstanding_bytes for site in profile.sites)
    processes = sorted({site.pid for site in profile.sites})
    who = ", ".join(profile.process_name(pid) for pid in processes[:4])
    more = f" and {len(processes) - 4} more" if len(processes) > 4 else ""
    seconds = duration_text((profile.ended_ns - profile.began_ns) / 1e9)
    return f"{size_text(total)} {profile.labels.held} after {seconds}; process {who or 'none'}{more}"


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{_escaped(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _row(profile: Profile, site: AllocationSite, node: int) -> str:
    cells = (
        size_text(site.outstanding_bytes),
        f"{site.outstanding_count:,}",
        size_text(site.resident_bytes) if site.resident_bytes is not None else "not read",
        kind_text([site]),
        profile.process_name(site.pid),
    )
    ended = "" if site.stack.complete else "<li>more frames could not be read</li>"
    frames = "".join(_frame_item(frame) for frame in site.stack.frames)
    stack = (
        f"<details><summary>{_escaped(profile.site_name(site))}</summary>"
        f'<button type="button" data-node="{node}" hidden>Show in the chart</button>'
        f'<ol class="stack" start="0">{frames}{ended}</ol></details>'
    )
    return f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in cells)}<td>{stack}</td></tr>"


def _frame_item(frame: Frame) -> str:
    _, place, _, source = _described(frame)
    where = f' <span class="place" title="{_escaped(source)}">{_escaped(place)}</span>' if place else ""
    marks = ", ".join(word for word, is_so in (("inlined", frame.inlined), ("guessed", frame.guessed)) if is_so)
    return f"<li>{_escaped(frame_name(frame))}{where}{f' ({marks})' if marks else ''}</li>"


def _escaped(value: str) -> str:
    return html.escape(text(value))


def _in_script(value: object) -> str:
    """JSON that cannot end a script element or open a comment."""
    encoded = json.dumps(value, separators=(",", ":"))
    return encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _part(name: str) -> str:
    return files("memforensics.report.html").joinpath(name).read_text(encoding="utf-8")
