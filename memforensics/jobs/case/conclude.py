"""From a case to its diagnosis: analysis, known causes, verdict. The same case gives the same diagnosis."""

from dataclasses import replace
from pathlib import Path

from memforensics.analysis.diagnosis import AnalysisCache, analyze, build_diagnosis
from memforensics.analysis.verdict import decide
from memforensics.case.model import Case, Diagnosis
from memforensics.case.store import CaseFile
from memforensics.remedies.catalogue import Catalogue, load_catalogue
from memforensics.remedies.match import match


def conclude_case(case: Case, catalogue: Catalogue | None = None, cache: AnalysisCache | None = None) -> Diagnosis:
    """The diagnosis of a case. Reads the packaged catalogue if none is given, and is pure otherwise. `cache`: results
    of an earlier state of this case."""
    catalogue = load_catalogue() if catalogue is None else catalogue
    analysis = analyze(case, cache)
    matched = [match(finding, case, catalogue) for finding in analysis.findings]
    decision = decide(case, analysis.growth, matched, analysis.own_layers, analysis.members)
    return build_diagnosis(case, replace(analysis, findings=decision.findings), decision)


def load_case(path: Path) -> Case:
    """CaseError if the file is not a case."""
    with CaseFile.open(path) as file:
        return file.load()


def load_diagnosis(path: Path, remedies: Path | None = None) -> tuple[Case, Diagnosis]:
    """The case in the file and its diagnosis, with the packaged causes and those in the folder `remedies`. CaseError
    if the file is not a case, UsageError if an entry of the folder is wrong."""
    catalogue = load_catalogue(remedies)
    case = load_case(path)
    return case, conclude_case(case, catalogue)
