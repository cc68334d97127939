"""A report as text, in the form asked for."""

from pathlib import Path
from typing import Literal

from memforensics.case.model import Case, Diagnosis
from memforensics.errors import UsageError

Format = Literal["terminal", "md", "json"]
ENDINGS: dict[str, Format] = {".md": "md", ".json": "json", ".txt": "terminal", "": "terminal"}


def form_of(output: Path) -> Format:
    """The form that the ending of a file name asks for. UsageError for an unknown ending."""
    form = ENDINGS.get(output.suffix)
    if form is None:
        raise UsageError(
            f"no report can be written as {output.suffix}: {output}",
            enable="use the ending .md, .json or .txt, or --format md, json or terminal",
        )
    return form


def render(case: Case, diagnosis: Diagnosis, form: Format, *, width: int = 100) -> str:
    """The report as text that ends with a newline: `terminal` (plain, `width` columns), `md` or `json`."""
    if form == "json":
        from memforensics.report.json.report import report_text

        return report_text(case, diagnosis) + "\n"
    if form == "md":
        from memforensics.report.markdown import report_markdown

        return report_markdown(case, diagnosis)
    from memforensics.report.terminal.report import report_text as screen_text

    return screen_text(case, diagnosis, width)
