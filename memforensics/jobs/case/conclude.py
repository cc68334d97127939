"""Evidence to conclusion: analysis, then the catalogue's causes, then the word. The same case gives the same report."""

from dataclasses import replace

from memforensics.analysis import conclude as analysis
from memforensics.analysis.verdict import decide
from memforensics.case.model import Case, Diagnosis
from memforensics.remedies.catalogue import Catalogue, load_catalogue
from memforensics.remedies.match import match


def conclude_case(case: Case, catalogue: Catalogue | None = None, seen: analysis.Seen | None = None) -> Diagnosis:
    """The diagnosis of a case. Pure but for reading the packaged catalogue. `seen`: of an earlier state of it."""
    catalogue = load_catalogue() if catalogue is None else catalogue
    draft = analysis.draft(case, seen)
    matched = [match(finding, case, catalogue) for finding in draft.findings]
    decision = decide(case, draft.growth, matched, draft.own_layers, draft.members)
    return analysis.finish(case, replace(draft, findings=decision.findings), decision)
