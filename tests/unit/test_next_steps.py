"""What a finding and a report say to do next. Every command that they print parses with the real command line."""

import re
import shlex
from dataclasses import replace

import pytest
from fixtures.constructed import INVQ_STACK, PID, case, finding_site, growing_finding, target, ucx_modules

from memforensics.analysis.next_steps import LEFT_OUT, next_step_for_finding, next_step_for_report
from memforensics.case.model import (
    LAYERS,
    Case,
    Culprit,
    EvidenceItem,
    Finding,
    Growth,
    Layer,
    Rate,
    Runtime,
    Trend,
)
from memforensics.cli.app import app
from memforensics.jobs.case.conclude import conclude_case
from memforensics.remedies.catalogue import load_catalogue
from memforensics.remedies.match import match
from memforensics.units import MIB

RATE = Rate(estimate=60 * MIB, low=50 * MIB, high=70 * MIB)
SHORT = Growth(metric="m", trend=Trend(shape="too-short", rate=None, p=None, samples=3, seconds=2.0), rate=None)
RISING = Growth(metric="m", trend=Trend(shape="linear", rate=RATE, p=0.0, samples=60, seconds=60.0), rate=RATE)
UNKNOWN = replace(growing_finding(), cause=None, sites=(), culprit=None, evidence=())
UNTRACED = case(traces=(), sites=())


def parses(step: str) -> list[str]:
    """The words of the memforensics command at the end of a step, as its command line takes them."""
    found = re.search(r"(?:^|: )(?:sudo \S+/)?memforensics (.*)$", step)
    assert found is not None, step
    words = shlex.split(found[1])
    before = words[: words.index("--")] if "--" in words else words
    import typer.main

    group = typer.main.get_command(app)
    command = group.get_command(None, before[0])  # type: ignore[attr-defined]
    assert command is not None, step
    command.make_parser(command.make_context(before[0], [], resilient_parsing=True)).parse_args(before[1:])
    return words


def layered(layer: Layer) -> Finding:
    return replace(UNKNOWN, layer=layer)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("runtime", ["cpython", "jvm", "glibc"])
def test_every_layer_has_a_valid_command(layer: Layer, traced: bool, runtime: str) -> None:
    about = target(runtimes=(Runtime(name=runtime, version="17"),))
    where = replace(case() if traced else UNTRACED, targets=(about,))
    step = next_step_for_finding(where, layered(layer))
    command = step.rpartition(": ")[2]
    assert command.split()[0] in ("memforensics", "ls", "jcmd", "nvidia-smi"), step
    assert "nvidia-smi" in command or str(PID) in command
    assert ("jcmd" in step) <= (runtime == "jvm")
    assert ("--memray" in step) <= (runtime == "cpython")
    if command.startswith("memforensics"):
        parses(step)


def test_steps_for_a_growing_heap() -> None:
    heap = layered("native-heap")
    assert "trace-faults" in next_step_for_finding(case(), heap)
    touched = replace(case().sites[0], kind="fault")
    assert "--memray" in next_step_for_finding(case(sites=(touched,)), heap)
    named = replace(heap, culprit=Culprit(library="l", extends=True))
    assert "--memray" in next_step_for_finding(case(), named)
    native = case(targets=(target(runtimes=(Runtime(name="glibc", version="2.36"),)),))
    assert "stacks" in next_step_for_finding(native, named)


@pytest.mark.parametrize(
    ("glibc", "call"), [("2.36", "clone3"), ("2.34", "clone3"), ("2.31", "clone"), (None, "clone")]
)
def test_threads_are_captured_at_the_clone_call_of_this_glibc(glibc: str | None, call: str) -> None:
    about = target(runtimes=(Runtime(name="glibc", version=glibc),))
    assert f"--on {call} --count" in next_step_for_finding(case(targets=(about,)), layered("thread-stack"))


def test_a_step_of_the_evidence_has_priority() -> None:
    known = replace(UNKNOWN, evidence=(EvidenceItem(kind="next", text="take two heap snapshots: kill -USR1 4242"),))
    assert next_step_for_finding(case(), known) == "take two heap snapshots: kill -USR1 4242"


def test_a_known_cause_leads_to_prove_with_its_first_variable() -> None:
    found = match(growing_finding(finding_site(INVQ_STACK)), case(modules=ucx_modules()), load_catalogue())
    words = parses(next_step_for_finding(case(), found))
    assert words[:3] == ["prove", "--env", "UCX_RCACHE_MAX_UNRELEASED=1024"]
    assert words[words.index("--") + 1 :] == list(target().cmdline)
    secret = case(targets=(target(cmdline=("serve", LEFT_OUT)),))
    assert LEFT_OUT not in next_step_for_finding(secret, found)


# --- a process that has ended -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_no_step_names_a_process_that_has_ended(layer: Layer) -> None:
    ended = case(targets=(target(left_how="it exited"),))
    step = next_step_for_finding(ended, layered(layer))
    assert "has ended (it exited) after 1 m" in step
    assert parses(step)[:3] == ["ci", "--duration", "60s"]
    hidden = next_step_for_finding(
        case(targets=(target(left_how="it exited", cmdline=("a", LEFT_OUT)),)), layered(layer)
    )
    assert LEFT_OUT not in hidden
    assert next_step_for_report(ended, SHORT, "insufficient-data", ()) == step


# --- the whole report -------------------------------------------------------------------------------------------------


def of(command: str, step_case: Case = UNTRACED) -> Case:
    return replace(step_case, meta=replace(step_case.meta, command=command))


@pytest.mark.parametrize("command", ["diagnose", "watch"])
def test_insufficient_data_leads_to_a_longer_observation(command: str) -> None:
    step = next_step_for_report(of(command), SHORT, "insufficient-data", ())
    assert step is not None
    words = parses(step)
    assert words[0] == command
    assert int(words[words.index("--duration") + 1].rstrip("s")) >= 120


@pytest.mark.parametrize(("command", "words"), [("diagnose", 4), ("watch", 2)])
def test_the_last_command_is_never_the_next_step_unchanged(command: str, words: int) -> None:
    step = next_step_for_report(of(command), RISING, "growing", ())
    assert step is not None
    assert len(parses(step)) == words  # with a longer duration, or the default of another command


@pytest.mark.parametrize("layer", LAYERS)
def test_steps_after_ci_name_no_pid(layer: Layer) -> None:
    finding = next_step_for_finding(of("ci", case()), layered(layer))
    whole = next_step_for_report(of("ci"), SHORT, "insufficient-data", ())
    for step in (finding, whole):
        assert step is not None
        words = parses(step)
        assert words[:2] == ["ci", "--duration"]
        assert str(PID) not in words


def test_a_steady_process_has_no_next_step() -> None:
    assert next_step_for_report(case(), RISING, "steady", ()) is None


def test_the_report_has_the_step_of_the_first_finding() -> None:
    diagnosis = conclude_case(case())
    assert diagnosis.next_step == diagnosis.findings[0].next_step
    assert diagnosis.next_step


def test_commands_have_the_program_name_as_started() -> None:
    meta = replace(case().meta, program="sudo /opt/venv/bin/memforensics")
    step = next_step_for_finding(replace(case(), meta=meta), layered("anon-mmap"))
    assert ": sudo /opt/venv/bin/memforensics trace-mmap 4242 " in step
    parses(step)
