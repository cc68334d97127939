"""The JSON Schema of every command's `--json`, made from the shapes. `make docs` writes it to the packaged file."""

import re
from pathlib import Path
from typing import Any

import msgspec

from memforensics.report.json.experiment import Gate, Prove
from memforensics.report.json.files import CaseListing, SymbolizedCase
from memforensics.report.json.probes import Doctor, Heap, Hooks, Stacks
from memforensics.report.json.report import Report
from memforensics.report.json.shapes import json_bytes
from memforensics.report.json.snapshot import Diff, Snapshot
from memforensics.report.json.trace import Trace
from memforensics.report.json.watch import Watch

FILE = Path(__file__).with_name("schema") / "report-1.schema.json"
OBJECTS = (
    *(Report, Trace, Hooks, Stacks, Heap, Snapshot, Diff, Watch, Doctor, Prove, Gate),
    *(CaseListing, SymbolizedCase),
)


def schema() -> dict[str, Any]:
    """JSON Schema 2020-12. The document itself describes the report; `$defs` has each other command's object."""
    _, components = msgspec.json.schema_components(OBJECTS, ref_template="#/$defs/{name}")
    defs = {_snake(name): _renamed(shape) for name, shape in sorted(components.items())}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:memforensics:report:1",
        "title": "The report of memforensics",
        **defs.pop("report"),
        "$defs": defs,
    }


def schema_text() -> str:
    return json_bytes(schema()).decode() + "\n"


def _renamed(node: Any) -> Any:
    """The same schema with references in snake case, without the titles, which are the names of our classes, and with
    a list of types where msgspec writes anyOf."""
    if isinstance(node, list):
        return [_renamed(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _renamed(value) for key, value in node.items() if key != "title" or not isinstance(value, str)}
    if "$ref" in node:
        node["$ref"] = re.sub(r"\w+$", lambda name: _snake(name[0]), node["$ref"])
    other, null = node.get("anyOf", ({}, {}))
    if null == {"type": "null"} and isinstance(other.get("type"), str):
        del node["anyOf"]
        node |= {**other, "type": [other["type"], "null"]}
    return node


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
