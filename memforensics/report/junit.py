"""The outcome of `ci` for build servers, as JUnit XML."""

from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite

from memforensics.case.views import Scenario
from memforensics.report.markdown import report_markdown
from memforensics.text import utf8, visible


def junit_xml(outcomes: list[Scenario]) -> str:
    """A suite with a test case for each scenario. The report is the text of a failure. A command that could not be
    observed is an error, not a failure."""
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


def _report(outcome: Scenario) -> str:
    if outcome.case is None or outcome.diagnosis is None:
        return outcome.message
    return report_markdown(outcome.case, outcome.diagnosis)


def _xml(text: str) -> str:
    """One line that XML 1.0 allows: no control characters, no lone surrogates."""
    return visible(utf8(text))
