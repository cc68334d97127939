"""The report's renderings, on a constructed case: fields, spellings, escaping, width."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest
from fixtures.constructed import (
    APP,
    BASE,
    LIST_STACK,
    PID,
    RATE,
    SECOND,
    case,
    diagnosis,
    finding_site,
    growing_finding,
    native,
    python,
    snapshot,
    target,
    ucx_hook,
)
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from memforensics.case.model import (
    EXIT_CODES,
    LAYERS,
    Caller,
    CapturedStack,
    Case,
    Culprit,
    Diagnosis,
    EnvVar,
    EvidenceItem,
    MemberGrowth,
    Pause,
    Rate,
    Stack,
)
from memforensics.case.views import StacksView
from memforensics.remedies.catalogue import load_catalogue
from memforensics.remedies.match import match
from memforensics.remedies.page import entry_page
from memforensics.report.json import probes, shapes
from memforensics.report.json import report as json_report
from memforensics.report.json.schema import FILE
from memforensics.report.json.snapshot import mapping
from memforensics.report.markdown import code, markdown, report_markdown
from memforensics.report.sentences import iso_time
from memforensics.report.terminal.report import report_text
from memforensics.text import basename, utf8, visible

CATALOGUE = load_catalogue()
SCHEMA = json.loads(FILE.read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
HOSTILE = "\x1b[31m]0;x\x07\n```\n# a|b <script>\u202e\udc80"


def leak() -> tuple[Case, Diagnosis]:
    minute = case()
    return minute, diagnosis(match(growing_finding(), minute, CATALOGUE))


def hostile() -> tuple[Case, Diagnosis]:
    """The same, where everything that the target names is hostile."""
    caller = Caller(function=HOSTILE, file=HOSTILE, line=1)
    stack = Stack(frames=(native(HOSTILE, HOSTILE, hook=True), python(HOSTILE, HOSTILE, 1)))
    finding = replace(
        growing_finding(finding_site(stack)),
        title=HOSTILE,
        culprit=Culprit(library=HOSTILE, path=HOSTILE, version=HOSTILE, function=HOSTILE, caller=caller),
        evidence=(EvidenceItem(kind="stack", text=HOSTILE, ref=HOSTILE),),
        against=(HOSTILE,),
    )
    process = target(
        EnvVar(name="LD_PRELOAD", value=HOSTILE), comm=HOSTILE, exe=HOSTILE, cmdline=(HOSTILE,), left_how=HOSTILE
    )
    hook = replace(ucx_hook(), owner_path=HOSTILE, owner_version=HOSTILE, target_function=HOSTILE, chain=(HOSTILE,))
    return case(targets=(process,)), diagnosis(finding, headline=HOSTILE, hooks=(hook,), next_step=HOSTILE)


def as_json(pair: tuple[Case, Diagnosis]) -> dict[str, object]:
    loaded: dict[str, object] = json.loads(json_report.report_text(*pair))
    return loaded


def test_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_schema_describes_every_object_and_field() -> None:
    objects = {"report": SCHEMA, **SCHEMA["$defs"]}
    undescribed = [name for name, shape in objects.items() if not shape.get("description")]
    for name, shape in objects.items():
        for key, field in shape["properties"].items():
            refers = "$ref" in field or any("$ref" in each for each in field.get("anyOf", ()))
            if not (refers or field.get("description") or key == "schema"):
                undescribed.append(f"{name}.{key}")
    assert undescribed == []


def test_json_is_valid_and_has_the_diagnosis() -> None:
    report = as_json(leak())
    VALIDATOR.validate(report)
    finding = report["findings"][0]  # type: ignore[index]
    assert (report["schema"], report["verdict"], report["exit_code"]) == ("memforensics/report/1", "leak", 1)
    assert finding["cause"] == "ucx-invq"
    assert finding["culprit"]["library"] == "libucs.so.0.0.0"
    caller = finding["culprit"]["caller"]
    assert caller == {"function": "BlockBuffer.release", "file": APP, "line": 88, "application": True}
    assert finding["sites"][0]["inside"] == "munmap"
    assert [frame["kind"] for frame in finding["sites"][0]["stack"]][:2] == ["native", "hook"]
    assert [remedy["name"] for remedy in finding["remedies"]][1:] == [
        "UCX_RCACHE_MAX_UNRELEASED",
        "UCX_MEM_MMAP_HOOK_MODE",
    ]
    assert report["growth"]["bytes_per_minute"]["estimate"] == RATE.estimate  # type: ignore[index]
    assert report["hooks"][0]["owner"]["library"] == "libucm.so.0.0.0"  # type: ignore[index]
    observed = report["observed"]
    assert (observed["seconds"], observed["samples"], observed["longest_pause_ms"]) == (60.0, 61, 0.0)  # type: ignore[index]
    assert observed["losses"]["trace-mmap"][0]["count"] == 3  # type: ignore[index]


@pytest.mark.parametrize("verdict", sorted(EXIT_CODES))
def test_each_verdict_has_its_exit_code(verdict: str) -> None:
    pair = (case(), diagnosis(verdict=verdict))
    report = as_json(pair)
    VALIDATOR.validate(report)
    assert report["exit_code"] == EXIT_CODES[verdict]  # type: ignore[index]
    assert report_text(*pair).startswith(f" {verdict.upper()} ")
    assert report_markdown(*pair).startswith(f"# {verdict}: ")


def test_schema_has_every_layer_and_verdict() -> None:
    row = SCHEMA["$defs"]["layer_row"]["properties"]
    assert set(row["layer"]["enum"]) == set(LAYERS)
    assert set(row["verdict"]["enum"]) == set(EXIT_CODES)


def test_empty_case_renders_in_every_format() -> None:
    """Nothing was seen at all: no target, no sample, no growth."""
    bare = replace(case(), targets=(), samples=(), sites=(), traces=(), hooks=(), modules=(), costs=())
    nothing = Diagnosis(
        verdict="insufficient-data",
        headline="nothing was seen",
        growth=None,
        layers=(),
        groups=(),
        members=(),
        findings=(),
        hooks=(),
    )
    report = as_json((bare, nothing))
    VALIDATOR.validate(report)
    assert report["target"] is None
    assert "nothing was seen" in report_text(bare, nothing)
    assert "nothing was seen" in report_markdown(bare, nothing)


def test_infinite_interval_is_null_in_json() -> None:
    rate = Rate(estimate=1.0, low=float("-inf"), high=float("inf"))
    growth = diagnosis().growth
    assert growth is not None
    report = as_json((case(), diagnosis(growth=replace(growth, rate=rate))))
    VALIDATOR.validate(report)
    assert report["growth"]["bytes_per_minute"] == {  # type: ignore[index]
        "estimate": 1.0,
        "low": None,
        "high": None,
        "confidence": 0.95,
    }


def test_first_screen_has_rate_layer_culprit_and_remedies() -> None:
    screen = report_text(*leak(), width=100).splitlines()[:46]
    text = "\n".join(screen)
    for wanted in (
        "LEAK",
        "+402 MiB/min",
        "interval: +398 MiB to +406 MiB",
        "anon-mmap",
        "libucs.so.0.0.0 1.19.0",
        f"BlockBuffer.release, {APP}:88",
        "mmap, munmap: inline, by libucm.so.0.0.0",
        "mmap inside munmap",
        "1 UCX >= 1.21.0",
        "2 UCX_RCACHE_MAX_UNRELEASED=1024",
        "https://github.com/openucx/ucx/pull/11248",
    ):
        assert wanted in text, wanted
    assert text.index("1 UCX >= 1.21.0") < text.index("2 UCX_RCACHE_MAX_UNRELEASED=1024")


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_line_is_wider_than_the_screen(width: int) -> None:
    assert max(len(line) for line in report_text(*leak(), width=width).splitlines()) <= width


@pytest.mark.parametrize("width", [80, 100])
def test_application_frame_is_marked(width: int) -> None:
    marked = [line for line in report_text(*leak(), width=width).splitlines() if "the application" in line]
    assert len(marked) == 1
    assert "BlockBuffer.release" in marked[0]
    assert "transfer.py:88" in marked[0]


def test_deep_stack_is_cut_after_the_application() -> None:
    frames = (
        *LIST_STACK.frames[:2],
        python("Archive.keep", "/srv/app/archive.py", 17),
        *(python(f"outer_{n}", "/srv/app/deep.py", n) for n in range(100)),
    )
    deep = replace(
        growing_finding(finding_site(Stack(frames=frames), inside=None)),
        culprit=Culprit(
            library="archive.py", caller=Caller(function="Archive.keep", file="/srv/app/archive.py", line=17)
        ),
    )
    screen = report_text(case(), diagnosis(deep))
    assert "the application" in screen
    assert "outer_99" not in screen
    assert "95 more frames" in screen
    report = as_json((case(), diagnosis(deep)))
    assert len(report["findings"][0]["sites"][0]["stack"]) == 103  # type: ignore[index]


def test_hooks_with_equal_meaning_share_a_sentence() -> None:
    functions = ("mmap", "munmap", "mremap", "brk", "sbrk")
    hooks = tuple(ucx_hook(function) for function in functions)
    meanings = {function: f"every {function} of the process goes to libucm first" for function in functions}
    answer = diagnosis(hooks=hooks, hook_meanings=meanings)
    for text in (report_text(case(), answer, width=160), report_markdown(case(), answer)):
        assert text.count("goes to libucm first") == 1
        assert "every mmap, munmap, mremap, brk and 1 more of the process" in text


def test_finding_without_remedies_offers_none() -> None:
    plain = diagnosis(
        replace(growing_finding(finding_site(LIST_STACK, inside=None)), verdict="growing"), verdict="growing"
    )
    quiet = case(hooks=(), losses=())
    for text in (report_text(quiet, plain), report_markdown(quiet, plain)):
        assert "What to do" not in text
        assert "UCX_" not in text


def test_two_workers_with_one_leak_list_remedies_once() -> None:
    minute = case()
    first = match(growing_finding(), minute, CATALOGUE)
    pair = (minute, diagnosis(first, replace(first, share=0.01)))
    for text in (report_text(*pair), report_markdown(*pair)):
        assert text.count("pull/11248") == 1
        assert "the same as for finding 1" in text
    report = as_json(pair)
    assert [len(finding["remedies"]) for finding in report["findings"]] == [3, 3]  # type: ignore[attr-defined]


def test_process_that_grows_most_is_named() -> None:
    child = target(pid=PID + 1, ppid=PID, role="vLLM engine", comm="VLLM::EngineCor")
    members = (
        MemberGrowth(pid=PID, change_bytes=0, rate=None),
        MemberGrowth(pid=PID + 1, change_bytes=5 * 1024**2, rate=RATE),
    )
    pair = (case(targets=(target(), child)), diagnosis(members=members))
    report = as_json(pair)
    VALIDATOR.validate(report)
    assert report["target"]["children"][0]["change_bytes"] == 5 * 1024**2  # type: ignore[index]
    for text in (report_text(*pair), report_markdown(*pair)):
        assert f"most of the growth is in {PID + 1} (vLLM engine" in text


def test_hostile_names_are_escaped_on_the_terminal() -> None:
    for width in (80, 100):
        screen = report_text(*hostile(), width=width)
        assert not set(screen) & set("\x1b\x07\u202e\udc80")
        screen.encode("utf-8")
        assert "\\x1b[31m" in screen


def test_hostile_names_are_escaped_in_markdown() -> None:
    text = report_markdown(*hostile())
    text.encode("utf-8")
    assert not set(text) & set("\x1b\x07\u202e")
    tokens = [t for block in MarkdownIt("commonmark").parse(text) for t in (block, *(block.children or ()))]
    kinds = [token.type for token in tokens]
    assert not {"html_inline", "html_block", "image", "link_open"} & set(kinds)
    assert kinds.count("fence") == 1
    headings = [tokens[n + 1].content for n, kind in enumerate(kinds) if kind == "heading_open"]
    assert not any(heading.startswith("a|b") for heading in headings)


def test_hostile_names_are_escaped_in_json() -> None:
    text = json_report.report_text(*hostile())
    text.encode("utf-8")
    VALIDATOR.validate(json.loads(text))


@given(st.text())
def test_visible_text_is_one_printable_line(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_printable_text_does_not_change(text: str) -> None:
    assert not text.isprintable() or visible(text) == text


@given(st.text(alphabet=st.sampled_from("`a \n\x1b\udc80"), min_size=1))
def test_text_cannot_end_its_code_span(text: str) -> None:
    (paragraph,) = [token for token in MarkdownIt("commonmark").parse(f"x{code(text)}x") if token.type == "inline"]
    assert paragraph.children is not None
    before, span, after = paragraph.children
    assert (before.content, span.type, after.content) == ("x", "code_inline", "x")
    assert span.content.strip() == visible(text).strip()


@given(st.text())
def test_utf8_always_encodes(text: str) -> None:
    utf8(text).encode("utf-8")


def test_markdown_escapes_marks_and_keeps_names() -> None:
    assert markdown("ucs_mpool_grow in libucs.so") == "ucs_mpool_grow in libucs.so"
    assert markdown("_x_ *y* <b> [z](u)") == "\\_x\\_ \\*y\\* \\<b\\> \\[z\\](u)"
    assert markdown("# not a heading") == "\\# not a heading"


def test_basename_drops_the_deleted_mark() -> None:
    assert basename("/a/libucs.so.0 (deleted)") == "libucs.so.0"
    assert basename("[heap]") == "[heap]"


def is_valid(name: str, value: object) -> bool:
    shape = {"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]}
    return bool(jsonschema.Draft202012Validator(shape).is_valid(json.loads(shapes.json_bytes(value))))


def test_shared_shapes_match_the_schema() -> None:
    minute, answer = leak()
    assert is_valid("traced_site", shapes.traced_site(minute.sites[0], bytes_per_minute=1.5))
    assert is_valid("site", shapes.finding_site(answer.findings[0].sites[0]))
    assert is_valid("hook", shapes.hook(minute.hooks[0]))
    assert is_valid("layer_row", shapes.layer_rows(answer.layers)[0])
    assert is_valid("group", shapes.mapping_groups(answer.groups)[0])


def test_capture_has_arguments_by_name() -> None:
    stop = CapturedStack(
        pid=PID,
        tid=PID,
        t_ns=BASE,
        function="mmap",
        arguments=(("addr", 0), ("length", 16384)),
        returned=0x7F0000000000,
        stack=LIST_STACK,
        pause_ms=12.5,
    )
    shown = probes.capture(stop)
    assert shown.arguments == {"addr": 0, "length": 16384}
    assert is_valid("capture", shown)


def test_addresses_above_2_to_the_63_keep_their_value() -> None:
    assert mapping(snapshot().mappings[1], "unattributed", "x").start == "0xffffffffff600000"


def test_pauses_are_summed() -> None:
    pauses = tuple(Pause(pid=PID, t_ns=BASE, probe="gdb", ms=ms) for ms in (3.0, 4.5))
    stopped = probes.stacks(StacksView(target(), (), pauses, ())).pause_ms
    never = probes.stacks(StacksView(target(), (), (), ())).pause_ms
    assert (stopped.total, stopped.longest) == (7.5, 4.5)
    assert (never.total, never.longest) == (0.0, 0.0)


def test_overhead_is_a_share_of_the_observed_time() -> None:
    assert shapes.overhead(case().costs, 60.0)["trace-mmap"].bpf_share == pytest.approx(0.4 / 60)


def test_times_are_iso_8601() -> None:
    assert iso_time(1_760_000_000 * SECOND) == "2025-10-09T08:53:20.000Z"


def _generator() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "gen_docs.py"
    spec = importlib.util.spec_from_file_location("gen_docs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_files_are_up_to_date() -> None:
    assert _generator().main(check=True) == 0


def test_catalogue_page_names_every_remedy() -> None:
    for entry in CATALOGUE:
        page = entry_page(entry)
        assert all(rung.name in page and rung.source in page for rung in entry.remedies)
