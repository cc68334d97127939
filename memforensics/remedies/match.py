"""From a finding to its cause and its remedies. Pure.

An entry matches if no required sign is unmet. If a required sign is unknown, the entry is *possible*: the report
mentions it if the growth is in the entry's layer. With `when_unknown = "lower"` it is a cause with lower confidence
instead. Only verified entries (certainty V) become a cause. Remedies keep the order of the entry; a remedy with a veto
moves to the end or is not offered, with the reason."""

from dataclasses import dataclass, replace

from memforensics.case.model import Case, EvidenceItem, Finding, Remedy
from memforensics.remedies.catalogue import Catalogue, Entry
from memforensics.remedies.conditions import evidence_of
from memforensics.remedies.evidence import MatchContext, Outcome, environment

_GROWS = ("growing", "leak", "retention", "bounded")
_ALREADY_SET_FACTOR = 0.6  # factor on the confidence: memory grows although a remedy is in place


@dataclass(frozen=True, slots=True)
class Match:
    """One entry, evaluated for one finding."""

    entry: Entry
    outcomes: tuple[Outcome, ...]  # of its signs, in order

    @property
    def firm(self) -> bool:
        """Whether it is a cause rather than a possibility."""
        return self.entry.certainty == "V" and all(
            outcome.state == "met" or (outcome.state == "unknown" and sign.when_unknown == "lower")
            for sign, outcome in zip(self.entry.signs, self.outcomes, strict=True)
            if sign.need == "required"
        )

    @property
    def strength(self) -> float:
        """0 to 1: the confidence from the signs that are met."""
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


def match(finding: Finding, case: Case, catalogue: Catalogue) -> Finding:
    """The finding with cause, remedies, evidence and counter-evidence if an entry matches; else with possible entries
    mentioned. A finding that does not grow stays as it is."""
    if finding.verdict not in _GROWS:
        return finding
    context = MatchContext(finding, case)
    matches = candidates(context, catalogue)
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
        return _explained(context, firm[0], mentions)
    possible = tuple(
        EvidenceItem(
            kind="possible-cause",
            text=f"possible cause {m.entry.id} ({m.entry.title}); not confirmed: "
            f"{'; '.join(m.unknowns()) or 'not verified'}",
            ref=f"remedies/{m.entry.id}",
        )
        for m in causes
        if finding.layer in (m.entry.layer, "unattributed")
    )
    return replace(finding, evidence=finding.evidence + possible + mentions)


def candidates(context: MatchContext, catalogue: Catalogue) -> list[Match]:
    """The entries without an unmet required sign and with at least one required sign met."""
    out = []
    for entry in catalogue:
        outcomes = tuple(sign.when.evaluate(context) for sign in entry.signs)
        required = [o.state for s, o in zip(entry.signs, outcomes, strict=True) if s.need == "required"]
        if "unmet" not in required and "met" in required:
            out.append(Match(entry, outcomes))
    return out


def _explained(context: MatchContext, found: Match, mentions: tuple[EvidenceItem, ...]) -> Finding:
    finding, entry = context.finding, found.entry
    verdict = entry.verdict if entry.verdict is not None and finding.verdict == "growing" else finding.verdict
    remedies = _remedies(context, entry)
    confidence = found.strength
    against = [f"{text}; this lowers the confidence" for text in found.unknowns()]
    for doubt, cost in _doubts(context):
        against.append(doubt)
        confidence *= cost
    if remedies.already_set:
        against += remedies.already_set
        confidence *= _ALREADY_SET_FACTOR
    explanation = EvidenceItem(kind="cause", text=entry.why, ref=f"remedies/{entry.id}")
    useless = tuple(
        EvidenceItem(kind="does-not-help", text=text, ref=f"remedies/{entry.id}") for text in entry.does_not_help
    )
    unusable = tuple(
        EvidenceItem(kind="not-offered", text=text, ref=f"remedies/{entry.id}") for text in remedies.not_offered
    )
    return replace(
        finding,
        title=entry.title,
        cause=entry.id,
        verdict=verdict,
        confidence=round(min(confidence, 0.99), 3),
        evidence=(*finding.evidence, *found.evidence(), explanation, *useless, *unusable, *mentions),
        against=(*finding.against, *against),
        remedies=remedies.offered,
    )


def _doubts(context: MatchContext) -> list[tuple[str, float]]:
    """Doubts about the stacks that the cause rests on: (sentence, factor on the confidence)."""
    stacks = [site.stack for site in context.finding.sites]
    doubts = []
    if any(stack.doubtful for stack in stacks):
        doubts.append(("in some stacks Python and native frames did not match one to one", 0.95))
    if any(frame.guessed for stack in stacks for frame in stack.frames):
        doubts.append(("some frames were found without unwind tables", 0.95))
    if any(loss.count for loss in context.case.losses if "trace" in loss.probe):
        doubts.append(("the trace lost events", 0.95))
    return doubts


@dataclass(frozen=True, slots=True)
class _Remedies:
    """The remedies of an entry for one process."""

    offered: tuple[Remedy, ...]  # in the order to try
    already_set: tuple[str, ...]  # a sentence for each that is in place
    not_offered: tuple[str, ...]  # a sentence for each that cannot be used here


def _remedies(context: MatchContext, entry: Entry) -> _Remedies:
    first: list[Remedy] = []
    last: list[Remedy] = []
    already_set: list[str] = []
    not_offered: list[str] = []
    for remedy in entry.remedies:
        value, where = environment(context.target, remedy.name) if remedy.kind == "env" else (None, "")
        if value is not None and remedy.is_in_place(value):
            already_set.append(
                f"{remedy.name}={value} is already set ({where}), but memory still grows: it was set after the library "
                "read it, or this is not the cause"
            )
            continue
        needs = [(f"it needs {need.product} {need.range}", need.evaluate(context)) for need in remedy.needs]
        unmet = [f"{text}, but {seen.text}" for text, seen in needs if seen.state == "unmet"]
        vetoes = [veto for veto in remedy.vetoes if veto.when.evaluate(context).state == "met"]
        unmet += [veto.text for veto in vetoes if veto.effect == "drop"]
        if unmet:
            not_offered.append(f"{remedy.setting} is not offered: {'; '.join(unmet)}")
            continue
        caveats = [veto.text for veto in vetoes]
        caveats += [f"{text[0].upper()}{text[1:]}; {seen.text}." for text, seen in needs if seen.state == "unknown"]
        if value is not None:
            limit = f"; only values up to {remedy.satisfied_up_to} limit the growth" if remedy.satisfied_up_to else ""
            caveats.append(f"current value: {remedy.name}={value} ({where}){limit}")
        (last if vetoes else first).append(remedy.remedy(*caveats))
    return _Remedies((*first, *last), tuple(already_set), tuple(not_offered))
