"""The gate's outcome for build servers: JUnit XML and JSON. Pure."""

from dataclasses import dataclass

from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite

from memforensics.case.model import Case, Diagnosis, Growth, Verdict
from memforensics.report.json.report import growth_json
from memforensics.report.json.shapes import Json
from memforensics.report.markdown import report_markdown
from memforensics.text import utf8, visible


@dataclass(frozen=True, slots=True)
class GateOutcome:
    """One scenario of `ci`, as the renderers take it. Without a case: the command ended before it was looked at."""

    name: str
    passed: bool
    message: str
    seconds: float
    case_file: str | None = None
    case: Case | None = None
    diagnosis: Diagnosis | None = None
    failed_to_observe: bool = False

    @property
    def verdict(self) -> Verdict:
        return self.diagnosis.verdict if self.diagnosis else "insufficient-data"

    @property
    def growth(self) -> Growth | None:
        return self.diagnosis.growth if self.diagnosis else None


def gate_object(outcomes: list[GateOutcome]) -> Json:
    """{scenarios: [{name, verdict, growth, limit, passed, failed_to_observe, case, message}]}."""
    return {
        "scenarios": [
            {
                "name": utf8(outcome.name),
                "verdict": outcome.verdict,
                "growth": growth_json(outcome.growth),
                "limit": outcome.growth.limit_bytes if outcome.growth else None,
                "passed": outcome.passed,
                "failed_to_observe": outcome.failed_to_observe,
                "case": utf8(outcome.case_file) if outcome.case_file else None,
                "message": utf8(outcome.message),
            }
            for outcome in outcomes
        ]
    }


def junit_xml(outcomes: list[GateOutcome]) -> str:
    """A suite with a test case for each scenario; the report is the failure's text.

    A command that could not be observed is an error, not a failure."""
    suite = TestSuite("memforensics")
    for outcome in outcomes:
        case = TestCase(_xml(outcome.name), classname="memforensics.ci", time=round(outcome.seconds, 3))
        if not outcome.passed:
            kind = Error if outcome.failed_to_observe else Failure
            failure = kind(_xml(outcome.message), "failed-to-observe" if outcome.failed_to_observe else outcome.verdict)
            failure.text = "\n".join(_xml(line) for line in _report(outcome).splitlines())
            case.result = [failure]
        suite.add_testcase(case)
    document = JUnitXml()
    document.add_testsuite(suite)
    text: bytes = document.tostring()  # type: ignore[no-untyped-call]
    return text.decode("utf-8")


def _report(outcome: GateOutcome) -> str:
    if outcome.case is None or outcome.diagnosis is None:
        return outcome.message
    return report_markdown(outcome.case, outcome.diagnosis)


def _xml(text: str) -> str:
    """One line that XML 1.0 can hold: no control characters, no lone surrogates."""
    return visible(utf8(text))
