"""`report`: a case file, concluded upon again and rendered. No privileges, no live process."""

from pathlib import Path
from typing import Literal

from memforensics.case.model import Case, Diagnosis
from memforensics.case.store import CaseFile
from memforensics.errors import UsageError
from memforensics.jobs.case.conclude import conclude_case
from memforensics.remedies.catalogue import load_catalogue

Format = Literal["terminal", "md", "json"]
ENDINGS: dict[str, Format] = {".md": "md", ".json": "json", ".txt": "terminal", "": "terminal"}


def form_of(output: Path) -> Format:
    """The form that a file's ending asks for. UsageError where it is none of ours."""
    form = ENDINGS.get(output.suffix)
    if form is None:
        raise UsageError(
            f"no report can be written as {output.suffix}: {output}",
            enable="an ending that can: .md, .json or .txt; or --format md, json or terminal",
        )
    return form


def load(path: Path, remedies: Path | None = None) -> tuple[Case, Diagnosis]:
    """The case in the file and what it says, by the catalogue and the entries in the folder `remedies`. CaseError when
    it cannot be read, UsageError when an entry is bad."""
    catalogue = load_catalogue(remedies)
    with CaseFile.open(path) as file:
        case = file.load()
    return case, conclude_case(case, catalogue)


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
