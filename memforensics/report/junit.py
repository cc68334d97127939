"""The gate's outcome for build servers: JUnit XML and JSON. Pure."""

from dataclasses import dataclass

from junitparser import Failure, JUnitXml, TestCase, TestSuite

from memforensics.case.model import Case, Diagnosis
from memforensics.report.json_report import growth_json
from memforensics.report.markdown import report_markdown
from memforensics.report.sites import Json
from memforensics.report.text import utf8, visible


@dataclass(frozen=True, slots=True)
class GateOutcome:
    """One scenario of `ci`, as the renderers take it."""

    name: str
    passed: bool
    message: str
    seconds: float
    case_file: str
    case: Case
    diagnosis: Diagnosis


def gate_object(outcomes: list[GateOutcome]) -> Json:
    """{scenarios: [{name, verdict, growth, limit, passed, case, message}]}."""
    return {
        "scenarios": [
            {
                "name": utf8(outcome.name),
                "verdict": outcome.diagnosis.verdict,
                "growth": growth_json(outcome.diagnosis.growth),
                "limit": outcome.diagnosis.growth.limit_bytes if outcome.diagnosis.growth else None,
                "passed": outcome.passed,
                "case": utf8(outcome.case_file),
                "message": utf8(outcome.message),
            }
            for outcome in outcomes
        ]
    }


def junit_xml(outcomes: list[GateOutcome]) -> str:
    """A suite with a test case for each scenario; the report is the failure's text."""
    suite = TestSuite("memforensics")
    for outcome in outcomes:
        case = TestCase(_xml(outcome.name), classname="memforensics.ci", time=round(outcome.seconds, 3))
        if not outcome.passed:
            failure = Failure(_xml(outcome.message), outcome.diagnosis.verdict)
            failure.text = "\n".join(_xml(line) for line in _report(outcome).splitlines())
            case.result = [failure]
        suite.add_testcase(case)
    document = JUnitXml()
    document.add_testsuite(suite)
    text: bytes = document.tostring()  # type: ignore[no-untyped-call]
    return text.decode("utf-8")


def _report(outcome: GateOutcome) -> str:
    return report_markdown(outcome.case, outcome.diagnosis)


def _xml(text: str) -> str:
    """One line that XML 1.0 can hold: no control characters, no lone surrogates."""
    return visible(utf8(text))
