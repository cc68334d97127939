"""The file format of https://www.speedscope.app: a profile for each figure, a weighted sample for each stack."""

import json
from datetime import datetime, timezone
from typing import Any

from memforensics.case.model import Frame
from memforensics.report.export.profile import (
    Measure,
    Profile,
    frame_name,
    frame_place,
    frame_source,
    measures,
    root_first,
    text,
)

SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def speedscope(profile: Profile) -> bytes:
    """JSON. The profile of outstanding bytes comes first and opens first. A profile of zeros only is left out."""
    frames: dict[tuple[object, ...], int] = {}
    described: list[dict[str, Any]] = []

    def number(key: tuple[object, ...], value: dict[str, Any]) -> int:
        if key not in frames:
            frames[key] = len(described)
            described.append(value)
        return frames[key]

    stacks: list[list[int]] = []
    for site in profile.sites:
        process = f"pid {profile.process_name(site.pid)}"
        stack = [number((process,), {"name": process})]
        stack += [number((f.kind, _name(f), f.file, f.line), _frame(f)) for f in root_first(site)]
        stacks.append(stack)
    profiles = [_measured(profile, stacks, measure) for measure in measures(profile.labels)]
    began = datetime.fromtimestamp(profile.anchor.wall_at(profile.began_ns) / 1e9, tz=timezone.utc)
    document = {
        "$schema": SCHEMA,
        "shared": {"frames": described},
        "profiles": [p for n, p in enumerate(profiles) if n == 0 or p["endValue"]],
        "name": f"{text(profile.title)}, {began:%Y-%m-%d %H:%M:%S} UTC",
        "activeProfileIndex": 0,
        "exporter": f"memforensics@{profile.version}",
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _measured(profile: Profile, stacks: list[list[int]], measure: Measure) -> dict[str, Any]:
    name, unit, value = measure
    held = [(stack, value(site) or 0) for site, stack in zip(profile.sites, stacks, strict=True)]
    held = sorted((pair for pair in held if pair[1] > 0), key=lambda pair: -pair[1])
    return {
        "type": "sampled",
        "name": name,
        "unit": unit if unit == "bytes" else "none",
        "startValue": 0,
        "endValue": sum(weight for _, weight in held),
        "samples": [stack for stack, _ in held],
        "weights": [weight for _, weight in held],
    }


def _name(frame: Frame) -> str:
    place = frame_place(frame) if frame.kind != "python" else ""
    return f"{frame_name(frame)} [{place}]" if place else frame_name(frame)


def _frame(frame: Frame) -> dict[str, Any]:
    out: dict[str, Any] = {"name": _name(frame)}
    if (source := frame_source(frame)) is not None:
        out["file"] = source
        if frame.line is not None:
            out["line"] = frame.line
    return out
