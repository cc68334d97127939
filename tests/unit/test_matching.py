"""How an entry of the catalogue becomes a cause, how sure it is, and which of its remedies are offered. Small entries
made for one question each."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fixtures.constructed import LIST_STACK, case, finding_site, growing_finding, native, target, ucx_modules

from memforensics.case.model import EnvVar, EvidenceItem, Finding, Loss, Stack
from memforensics.errors import UsageError
from memforensics.remedies.catalogue import Entry, load_catalogue, parse_entry
from memforensics.remedies.conditions import LayerCondition
from memforensics.remedies.evidence import MatchContext
from memforensics.remedies.match import candidates, match

HEAD = """
id = "made"
title = "A made cause"
layer = "anon-mmap"
certainty = "V"
verdict = "leak"
strength = 0.5
explanation = '''
Two lines
of words.'''
sources = ["https://example.org"]
"""
MET = '{ kind = "layer", layers = ["anon-mmap"] }'
UNMET = '{ kind = "layer", layers = ["gpu"] }'
UNKNOWN = '{ kind = "unread", what = "the moon" }'


def sign(when: str, **more: Any) -> str:
    fields = "".join(f"{name} = {value!r}\n" for name, value in more.items())
    return f"[[signs]]\nwhen = {when}\n{fields}"


def remedy(name: str = "A_SIZE", value: str = "1024", extra: str = "", **more: Any) -> str:
    about = {"kind": "env", "text": "Set it.", "scope": "restart", "source": "https://example.org/a", **more}
    fields = "".join(f"{key} = {text!r}\n" for key, text in {"name": name, "value": value, **about}.items())
    return f"[[remedies]]\n{fields}{extra}"


def veto(when: str, effect: str, text: str) -> str:
    return f"[[remedies.vetoes]]\nwhen = {when}\neffect = {effect!r}\ntext = {text!r}\n"


def entry(*parts: str, head: str = HEAD) -> Entry:
    return parse_entry("\n".join((head, *parts)), "made.toml")


def matched(*parts: str, head: str = HEAD, finding: Finding | None = None, **more: Any) -> Finding:
    return match(finding or growing_finding(), case(**{"losses": (), **more}), (entry(*parts, head=head),))


def kinds(finding: Finding) -> dict[str, str]:
    return {item.kind: item.text for item in finding.evidence if item not in growing_finding().evidence}


# --- from signs to a cause


def test_a_met_required_sign_makes_the_cause() -> None:
    found = matched(sign(MET, says="It grows there"))
    assert (found.cause, found.title, found.verdict, found.confidence) == ("made", "A made cause", "leak", 0.5)
    assert found.evidence[len(growing_finding().evidence) :] == (
        EvidenceItem(kind="layer", text="It grows there: the growth is in the layer anon-mmap", ref=""),
        EvidenceItem(kind="cause", text="Two lines of words.", ref="remedies/made"),
    )


def test_an_unmet_required_sign_excludes_the_entry() -> None:
    assert matched(sign(MET), sign(UNMET)) == growing_finding()
    assert matched(sign(UNMET)) == growing_finding()


def test_a_cause_needs_a_met_required_sign() -> None:
    assert matched(sign(UNKNOWN)) == growing_finding()
    assert matched(sign(UNKNOWN), sign(MET, need="adds", weight=0.5)) == growing_finding()


def test_an_unknown_required_sign_makes_the_cause_possible() -> None:
    found = matched(sign(MET), sign(UNKNOWN))
    text = "possible cause made (A made cause); not confirmed: not read: the moon"
    assert kinds(found) == {"possible-cause": text}
    assert found.evidence[-1].ref == "remedies/made"
    assert (found.cause, found.verdict, found.remedies) == (None, "growing", ())
    anywhere = '{ kind = "layer", layers = ["anon-mmap", "gpu", "unattributed"] }'
    unattributed = replace(growing_finding(), layer="unattributed")
    assert "possible-cause" in kinds(matched(sign(anywhere), sign(UNKNOWN), finding=unattributed))
    gpu = replace(growing_finding(), layer="gpu")
    assert kinds(matched(sign(anywhere), sign(UNKNOWN), finding=gpu)) == {}


def test_an_unknown_sign_that_only_lowers_the_confidence_is_reported() -> None:
    found = matched(sign(MET), sign(UNKNOWN, when_unknown="lower"))
    assert found.cause == "made"
    assert found.against == ("not read: the moon; this lowers the confidence",)


def test_an_unknown_optional_sign_is_not_reported() -> None:
    found = matched(sign(MET), sign(UNKNOWN, need="adds", weight=0.5), sign(UNMET, need="adds", weight=0.5))
    assert (found.cause, found.confidence, found.against) == ("made", 0.5, ())


def test_a_plausible_entry_is_not_a_cause() -> None:
    plausible = HEAD.replace('"V"', '"P"')
    assert kinds(matched(sign(MET), head=plausible)) == {
        "possible-cause": "possible cause made (A made cause); not confirmed: not verified"
    }


@pytest.mark.parametrize("verdict", ["growing", "leak", "retention", "bounded"])
def test_only_a_finding_that_grows_takes_the_entrys_verdict(verdict: str) -> None:
    found = matched(sign(MET), finding=replace(growing_finding(), verdict=verdict))  # type: ignore[arg-type]
    assert (found.cause, found.verdict) == ("made", "leak" if verdict == "growing" else verdict)
    without = HEAD.replace('verdict = "leak"\n', "")
    assert matched(sign(MET), head=without).verdict == "growing"


def test_the_cause_with_the_higher_confidence_is_named() -> None:
    weak, strong = entry(sign(MET)), replace_id(entry(sign(MET), head=HEAD.replace("0.5", "0.6")), "strong")
    for catalogue in ((weak, strong), (strong, weak)):
        found = match(growing_finding(), case(), catalogue)
        assert found.cause == "strong"
        assert [item.ref for item in found.evidence if item.kind == "cause"] == ["remedies/strong"]


def replace_id(made: Entry, name: str) -> Entry:
    return msgspec.structs.replace(made, id=name)


def test_a_conflict_is_mentioned_whatever_the_cause() -> None:
    conflict = HEAD.replace('id = "made"', 'id = "made"\nrole = "conflict"')
    found = matched(sign(MET), head=conflict)
    assert found.cause is None
    assert kinds(found) == {"conflict": "A made cause. Two lines\nof words."}
    assert found.evidence[-1].ref == "remedies/made"
    assert matched(sign(MET), sign(UNKNOWN), head=conflict) == growing_finding(), "a possible one is not mentioned"


def test_candidates_keep_the_order_of_the_catalogue_and_of_the_signs() -> None:
    first = entry(sign(MET), sign(UNKNOWN, need="adds"), sign(UNMET, need="adds"))
    second = replace_id(first, "second")
    found = candidates(MatchContext(growing_finding(), case()), (first, entry(sign(UNMET)), second))
    assert [each.entry.id for each in found] == ["made", "second"]
    assert [outcome.state for outcome in found[0].outcomes] == ["met", "unknown", "unmet"]
    assert isinstance(first.signs[0].when, LayerCondition)


# --- how sure it is


def test_each_met_sign_raises_the_confidence() -> None:
    added = sign(MET, need="adds", weight=0.5)
    assert matched(sign(MET), added).confidence == 0.75
    assert matched(sign(MET), added, added).confidence == 0.875
    assert matched(sign(MET, weight=0.2), added).confidence == 0.8


def test_no_cause_is_certain() -> None:
    assert matched(sign(MET), head=HEAD.replace("0.5", "1.0")).confidence == 0.99


def spliced(*, doubtful: bool = False, guessed: bool = False) -> Finding:
    frames = (*LIST_STACK.frames, replace(native("f", "/a/b.so"), guessed=guessed))
    return growing_finding(finding_site(), finding_site(Stack(frames=frames, doubtful=doubtful)))


@pytest.mark.parametrize(
    ("finding", "losses", "against"),
    [
        (growing_finding(), (), ()),
        (spliced(doubtful=True), (), ("in some stacks Python and native frames did not match one to one",)),
        (spliced(guessed=True), (), ("some frames were found without unwind tables",)),
        (growing_finding(), (Loss(probe="trace-mmap", what="w", count=1, reduce="r"),), ("the trace lost events",)),
        (growing_finding(), (Loss(probe="trace-mmap", what="w", count=0, reduce="r"),), ()),
        (growing_finding(), (Loss(probe="observe", what="w", count=9, reduce="r"),), ()),
    ],
)
def test_doubtful_stacks_lower_the_confidence(
    finding: Finding, losses: tuple[Loss, ...], against: tuple[str, ...]
) -> None:
    found = matched(sign(MET), finding=finding, losses=losses)
    assert found.against == against
    assert found.confidence == (0.475 if against else 0.5)


def test_doubts_multiply() -> None:
    finding = spliced(doubtful=True, guessed=True)
    found = matched(sign(MET), finding=finding, losses=(Loss(probe="trace-mmap", what="w", count=1, reduce="r"),))
    assert found.confidence == round(0.5 * 0.95**3, 3)


def test_counter_evidence_of_the_finding_is_kept() -> None:
    found = matched(sign(MET), finding=replace(spliced(doubtful=True), against=("before",)))
    assert found.against[0] == "before"
    assert len(found.against) == 2


# --- the ladder


def with_env(value: str, *, name: str = "A_SIZE") -> dict[str, Any]:
    return {"targets": (target(EnvVar(name=name, value=value, source="live")),)}


def offered(found: Finding) -> list[str]:
    return [f"{remedy.name}={remedy.value}" for remedy in found.remedies]


def test_remedies_keep_their_order_and_a_veto_moves_one_to_the_end() -> None:
    ladder = (
        remedy("A", extra=veto(MET, "last", "it is slow")),
        remedy("B"),
        remedy("C", extra=veto(UNMET, "drop", "it breaks") + veto(UNKNOWN, "last", "it is slow")),
    )
    found = matched(sign(MET), *ladder)
    assert offered(found) == ["B=1024", "C=1024", "A=1024"]
    assert [remedy.caveats for remedy in found.remedies] == [(), (), ("it is slow",)]
    assert (found.remedies[0].kind, found.remedies[0].scope, found.remedies[0].source) == (
        "env",
        "restart",
        "https://example.org/a",
    )
    assert found.remedies[0].text == "Set it."


def test_a_dropped_remedy_is_reported() -> None:
    both = veto(MET, "drop", "it breaks here") + veto(MET, "drop", "and there") + veto(MET, "last", "it is slow")
    found = matched(sign(MET), remedy("A", extra=both), remedy("B"))
    assert offered(found) == ["B=1024"]
    assert kinds(found)["not-offered"] == "A=1024 is not offered: it breaks here; and there"
    assert found.confidence == 0.5


def test_a_remedy_in_place_lowers_the_confidence() -> None:
    found = matched(sign(MET), remedy(), remedy("B"), **with_env("1024"))
    assert offered(found) == ["B=1024"]
    assert found.confidence == 0.3
    (text,) = found.against
    assert text.startswith("A_SIZE=1024 is already set (live environment), but memory still grows")


def test_the_current_value_is_a_caveat() -> None:
    found = matched(sign(MET), remedy(caveats=["Mind."]), **with_env("4096"))
    assert found.remedies[0].caveats == ("Mind.", "current value: A_SIZE=4096 (live environment)")
    limited = remedy(satisfied_up_to="1G")
    found = matched(sign(MET), limited, **with_env("inf"))
    assert found.remedies[0].caveats == (
        "current value: A_SIZE=inf (live environment); only values up to 1G limit the growth",
    )
    assert matched(sign(MET), limited, **with_env("1024M")).remedies == ()
    other_kind = remedy(kind="upgrade", name="A_SIZE", value="")
    assert matched(sign(MET), other_kind, **with_env("4096")).remedies[0].caveats == ()


NEEDS = """[[remedies.needs]]
kind = "version"
name = "libuc*"
range = ">=1.20"
product = "UCX"
"""


def test_a_remedy_that_the_mapped_version_lacks_is_not_offered() -> None:
    nobody = replace(growing_finding(), culprit=None)
    found = matched(sign(MET), remedy(extra=NEEDS), finding=nobody, hooks=())
    assert offered(found) == []
    assert kinds(found)["not-offered"].startswith(
        "A_SIZE=1024 is not offered: it needs UCX >=1.20, but UCX 1.19.0 is loaded"
    )
    newer = matched(sign(MET), remedy(extra=NEEDS), finding=nobody, hooks=(), modules=ucx_modules("1.20.0"))
    assert (offered(newer), newer.remedies[0].caveats) == (["A_SIZE=1024"], ())


def test_a_remedy_with_an_unknown_need_is_offered_with_a_caveat() -> None:
    nobody = replace(growing_finding(), culprit=None)
    unread = matched(sign(MET), remedy(extra=NEEDS), finding=nobody, hooks=(), modules=ucx_modules(None))
    assert unread.remedies[0].caveats == ("It needs UCX >=1.20; the version of UCX could not be read.",)


# --- the files


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('certainty = "V"', 'certainty = "V"\nsurprise = 1', "surprise"),
        ('id = "made"', 'id = "-made"', "lower case letters, digits and hyphens only"),
        ("strength = 0.5", "strength = -0.1", "0 to 1"),
        ("strength = 0.5", "strength = 1.1", "0 to 1"),
        ('["https://example.org"]', "[]", "needs a source"),
        (f"when = {MET}", f"when = {MET}\nweight = 1.5", "0 to 1"),
        (f"when = {MET}", f"when = {MET}\nneed = 'adds'", "no sign is required"),
        ("source = 'https://example.org/a'", "source = ''", "the remedy A_SIZE has no source"),
        (f"when = {UNMET}", "when = { kind = 'env', name = 'A', value = '(' }", "unterminated"),
        (f"when = {UNMET}", "when = { kind = 'cmdline', pattern = '[', says = '' }", "unterminated"),
        (f"when = {MET}", "when = { kind = 'stack', frames = ['libc* | libd*!f'] }", "'libc* | libd*!f' is not file!"),
        ('range = ">=1.20"', 'range = "newer"', "newer"),
    ],
)
def test_an_invalid_entry_is_refused(old: str, new: str, fault: str) -> None:
    text = HEAD + sign(MET) + remedy(extra=NEEDS + veto(UNMET, "drop", "it breaks"))
    assert parse_entry(text, "made.toml").id == "made"
    assert old in text
    with pytest.raises(UsageError, match=r"^made\.toml is not a catalogue entry") as raised:
        parse_entry(text.replace(old, new), "made.toml")
    assert fault in raised.value.why


def test_certainty_p_needs_no_source_and_shares_may_be_0_and_1() -> None:
    text = (HEAD + sign(MET, weight=1)).replace('"V"', '"P"').replace('["https://example.org"]', "[]")
    assert parse_entry(text.replace("0.5", "1"), "made.toml").strength == 1
    assert parse_entry(text.replace("0.5", "0"), "made.toml").strength == 0


def test_a_folder_is_read_in_order_of_ids(tmp_path: Path) -> None:
    text = HEAD + sign(MET)
    for name in ("zz", "aa"):
        (tmp_path / f"{name}.toml").write_text(text.replace('"made"', f'"{name}"'))
    ids = [each.id for each in load_catalogue(tmp_path)]
    assert ids == sorted(ids)
    assert {"zz", "aa"} < set(ids)
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"cannot read .*bad\.toml"):
        load_catalogue(tmp_path)


def test_a_missing_folder_is_an_error_with_help(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder") as raised:
        load_catalogue(tmp_path / "none")
    assert "folder of .toml files" in raised.value.enable
