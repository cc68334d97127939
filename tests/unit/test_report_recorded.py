"""Cases recorded from real processes by `diagnose --record` (paths shortened, two snapshots of each process kept): the
leak of UCX 1.19.0, the same service on 1.21.0, and a Python program that keeps shared anonymous mappings in a list.

They are also old case files: whatever the model becomes, these must go on being read."""

import gzip
import json
from pathlib import Path

import jsonschema
import pytest

from memforensics.case.model import Case, Diagnosis
from memforensics.jobs.case.conclude import load_diagnosis
from memforensics.report.json.schema import FILE
from memforensics.report.render import render

RECORDED = Path(__file__).resolve().parents[1] / "fixtures" / "recorded"


def recorded(name: str, folder: Path) -> tuple[Case, Diagnosis]:
    path = folder / f"{name}.case"
    path.write_bytes(gzip.decompress((RECORDED / f"{name}.case.gz").read_bytes()))
    return load_diagnosis(path)


@pytest.mark.parametrize("name", ["ucx-1.19.0", "ucx-1.21.0", "kept-mappings"])
def test_recorded_case_renders_the_same_each_time(name: str, tmp_path: Path) -> None:
    case, diagnosis = recorded(name, tmp_path)
    jsonschema.Draft202012Validator(json.loads(FILE.read_text())).validate(json.loads(render(case, diagnosis, "json")))
    first = {form: render(case, diagnosis, form) for form in ("terminal", "md", "json")}
    again = load_diagnosis(tmp_path / f"{name}.case")
    assert {form: render(*again, form) for form in first} == first  # type: ignore[arg-type]
    assert max(map(len, render(case, diagnosis, "terminal", width=80).splitlines())) <= 80


def test_recorded_leak_is_found_with_its_cause(tmp_path: Path) -> None:
    case, diagnosis = recorded("ucx-1.19.0", tmp_path)
    report = json.loads(render(case, diagnosis, "json"))
    finding = report["findings"][0]
    assert (report["verdict"], finding["cause"], finding["layer"]) == ("leak", "ucx-invq", "anon-mmap")
    assert (finding["culprit"]["library"], finding["culprit"]["version"]) == ("libucs.so", "1.19.0")
    assert finding["culprit"]["caller"]["function"] == "Model.stage_tensor"
    assert finding["sites"][0]["inside"] == "munmap"
    functions = [frame["function"] for frame in finding["sites"][0]["stack"]]
    assert functions.index("ucs_mpool_grow") < functions.index("ucm_munmap") < functions.index("Model.stage_tensor")
    assert {hook["mechanism"] for hook in report["hooks"]} == {"inline"}
    assert [(r["name"], r["value"]) for r in finding["remedies"]] == [
        ("UCX", ">= 1.21.0"),
        ("UCX_RCACHE_MAX_UNRELEASED", "1024"),
        ("UCX_MEM_MMAP_HOOK_MODE", "none"),
    ]
    assert "1.17.0 to 1.20.x have this bug: UCX 1.19.0 is loaded" in render(case, diagnosis, "md")


def test_fixed_version_offers_no_remedy(tmp_path: Path) -> None:
    case, diagnosis = recorded("ucx-1.21.0", tmp_path)
    assert (diagnosis.verdict, diagnosis.findings) == ("steady", ())
    for form in ("terminal", "md", "json"):
        assert "UCX_" not in render(case, diagnosis, form)


def test_kept_mappings_name_their_function_and_no_known_cause(tmp_path: Path) -> None:
    case, diagnosis = recorded("kept-mappings", tmp_path)
    finding = diagnosis.findings[0]
    assert (diagnosis.verdict, finding.cause, finding.remedies) == ("growing", None, ())
    assert finding.culprit is not None
    assert finding.culprit.library == "diag_keep_mappings.py"
    for form in ("terminal", "md", "json"):
        text = render(case, diagnosis, form)
        assert "map_buffer" in text
        assert "ucx" not in text.lower()
