"""From a finding to its cause and its ladder of remedies. Pure.

An entry matches when no required sign is unmet. With one of them unknown it is *possible* and only mentioned, where the
growth is in the entry's own layer, unless the entry says that the rest is proof enough (`when_unknown = "lower"`). Only
entries whose text was read (certainty V) become a cause. Remedies come in the entry's order; what speaks against one
here is said, and moves it to the end. A remedy that this process cannot use is not offered, and that is said too.
"""

from dataclasses import dataclass, replace

from memforensics.case.model import Case, EvidenceItem, Finding, Remedy
from memforensics.remedies.catalogue import Catalogue, Entry
from memforensics.remedies.conditions import Outcome, Scene, environment, evidence_of

_GROWS = ("growing", "leak", "retention", "bounded")
_SET_ALREADY_COST = 0.6  # a remedy that is in place, with the growth going on, is doubt about the cause


@dataclass(frozen=True, slots=True)
class Match:
    """One entry, held against one finding."""

    entry: Entry
    outcomes: tuple[Outcome, ...]  # one a sign, in order

    @property
    def firm(self) -> bool:
        """A cause, not a mere possibility."""
        return self.entry.certainty == "V" and all(
            outcome.state == "met" or (outcome.state == "unknown" and sign.when_unknown == "lower")
            for sign, outcome in zip(self.entry.signs, self.outcomes, strict=True)
            if sign.need == "required"
        )

    @property
    def strength(self) -> float:
        """0 to 1: how sure the signs that are met make the cause."""
        strength = self.entry.strength
        for sign, outcome in zip(self.entry.signs, self.outcomes, strict=True):
            if outcome.state == "met":
                strength += (1 - strength) * sign.weight
        return strength

    def evidence(self) -> tuple[EvidenceItem, ...]:
        return tuple(
            evidence_of(sign.when, outcome, sign.says)
            for sign, outcome in zip(self.entry.signs, self.outcomes, strict=True)
            if outcome.state == "met"
        )

    def unknowns(self) -> tuple[str, ...]:
        return tuple(
            outcome.text
            for sign, outcome in zip(self.entry.signs, self.outcomes, strict=True)
            if outcome.state == "unknown" and sign.need == "required"
        )


def match(draft: Finding, case: Case, catalogue: Catalogue) -> Finding:
    """The finding with its cause, remedies, further evidence and what speaks against, where an entry fits; else as it
    was, with what is possible mentioned. A finding that does not grow is left alone: no growth, no remedy."""
    if draft.verdict not in _GROWS:
        return draft
    scene = Scene(draft, case)
    matches = candidates(scene, catalogue)
    conflicts = [m for m in matches if m.entry.role == "conflict" and m.firm]
    causes = [m for m in matches if m.entry.role == "cause"]
    firm = sorted((m for m in causes if m.firm), key=lambda m: -m.strength)
    mentions = tuple(
        EvidenceItem(
            kind="conflict", text=f"{m.entry.title}. {m.entry.explanation.strip()}", ref=f"remedies/{m.entry.id}"
        )
        for m in conflicts
    )
    if firm:
        return _explained(scene, firm[0], mentions)
    possible = tuple(
        EvidenceItem(
            kind="possible-cause",
            text=f"possibly {m.entry.id} ({m.entry.title}), not shown: {'; '.join(m.unknowns()) or 'not certain'}",
            ref=f"remedies/{m.entry.id}",
        )
        for m in causes
        if draft.layer in (m.entry.layer, "unattributed")
    )
    return replace(draft, evidence=draft.evidence + possible + mentions)


def candidates(scene: Scene, catalogue: Catalogue) -> list[Match]:
    """Every entry that the evidence does not rule out and for which at least one required sign speaks."""
    out = []
    for entry in catalogue:
        outcomes = tuple(sign.when.judge(scene) for sign in entry.signs)
        required = [o.state for s, o in zip(entry.signs, outcomes, strict=True) if s.need == "required"]
        if "unmet" not in required and "met" in required:
            out.append(Match(entry, outcomes))
    return out


def _explained(scene: Scene, found: Match, mentions: tuple[EvidenceItem, ...]) -> Finding:
    draft, entry = scene.finding, found.entry
    verdict = entry.verdict if entry.verdict is not None and draft.verdict == "growing" else draft.verdict
    ladder = _ladder(scene, entry)
    confidence = found.strength
    against = [f"{text}: the confidence is lower for it" for text in found.unknowns()]
    for doubt, cost in _doubts(scene):
        against.append(doubt)
        confidence *= cost
    if ladder.set_already:
        against += ladder.set_already
        confidence *= _SET_ALREADY_COST
    explanation = EvidenceItem(kind="cause", text=entry.why, ref=f"remedies/{entry.id}")
    useless = tuple(
        EvidenceItem(kind="does-not-help", text=text, ref=f"remedies/{entry.id}") for text in entry.does_not_help
    )
    unusable = tuple(
        EvidenceItem(kind="not-offered", text=text, ref=f"remedies/{entry.id}") for text in ladder.not_offered
    )
    return replace(
        draft,
        title=entry.title,
        cause=entry.id,
        verdict=verdict,
        confidence=round(min(confidence, 0.99), 3),
        evidence=(*draft.evidence, *found.evidence(), explanation, *useless, *unusable, *mentions),
        against=(*draft.against, *against),
        remedies=ladder.offered,
    )


def _doubts(scene: Scene) -> list[tuple[str, float]]:
    """What makes the stacks, on which the cause stands, less sure: (a sentence, the factor on the confidence)."""
    stacks = [site.stack for site in scene.finding.sites]
    doubts = []
    if any(stack.doubtful for stack in stacks):
        doubts.append(("on some stacks Python and native frames did not splice one to one", 0.95))
    if any(frame.guessed for stack in stacks for frame in stack.frames):
        doubts.append(("some frames were found without unwind tables", 0.95))
    if any(loss.count for loss in scene.case.losses if "trace" in loss.probe):
        doubts.append(("the trace lost events", 0.95))
    return doubts


@dataclass(frozen=True, slots=True)
class _Ladder:
    """The remedies of an entry for one process."""

    offered: tuple[Remedy, ...]  # in the order to try
    set_already: tuple[str, ...]  # a sentence for each that is in place
    not_offered: tuple[str, ...]  # a sentence for each that cannot be used here


def _ladder(scene: Scene, entry: Entry) -> _Ladder:
    first: list[Remedy] = []
    last: list[Remedy] = []
    set_already: list[str] = []
    not_offered: list[str] = []
    for rung in entry.remedies:
        value, where = environment(scene.target, rung.name) if rung.kind == "env" else (None, "")
        if value is not None and rung.is_in_place(value):
            set_already.append(
                f"{rung.name}={value} is set already ({where}), and the memory still grows: either it was set after "
                "the library read it, or this is not the cause"
            )
            continue
        needs = [(f"it needs {need.product} {need.range}", need.judge(scene)) for need in rung.needs]
        unmet = [f"{text}, and {seen.text}" for text, seen in needs if seen.state == "unmet"]
        vetoes = [veto for veto in rung.vetoes if veto.when.judge(scene).state == "met"]
        unmet += [veto.text for veto in vetoes if veto.effect == "drop"]
        if unmet:
            not_offered.append(f"{rung.setting} is not offered: {'; '.join(unmet)}")
            continue
        caveats = [veto.text for veto in vetoes]
        caveats += [f"{text[0].upper()}{text[1:]}; {seen.text}." for text, seen in needs if seen.state == "unknown"]
        if value is not None:
            limit = f"; only a value up to {rung.satisfied_up_to} limits the growth" if rung.satisfied_up_to else ""
            caveats.append(f"now {rung.name}={value} ({where}){limit}")
        (last if vetoes else first).append(rung.remedy(*caveats))
    return _Ladder((*first, *last), tuple(set_already), tuple(not_offered))
