"""`memforensics ci -- COMMAND`."""

from pathlib import Path
from typing import Annotated

import typer

from memforensics.cli.common import (
    JsonOption,
    RecordOption,
    RemediesOption,
    duration_option,
    print_json,
    say,
    verdict_duration_option,
)

EXAMPLES = (
    "memforensics ci --duration 60s --warmup 20s --junit leak.xml -- python serve.py",
    "memforensics ci --fail-on leak --report leak.md -- ./soak.sh",
)


def ci(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="The command to run.")],
    duration: Annotated[float, verdict_duration_option("How long to observe it.")] = "60s",  # type: ignore[assignment]
    warmup: Annotated[float, duration_option("How long it runs before the observation starts.", "--warmup")] = "0s",  # type: ignore[assignment]
    fail_on: Annotated[
        str, typer.Option(metavar="VERDICTS", help="The verdicts that fail the build, comma-separated.")
    ] = "leak,growing,insufficient-data",
    name: Annotated[
        str | None, typer.Option(help="The name of the scenario. [default: the harmless words of COMMAND]")
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML to this file.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the Markdown report to this file. [default: next to the case]"),
    ] = None,
    record: RecordOption = None,
    remedies: RemediesOption = None,
    json: JsonOption = False,
) -> int:
    """Run COMMAND, diagnose it while it runs, and fail the build if it leaks.

    Writes a report (Markdown) and the case. Exit code 0: passed; 1: leak; 4: growing, or too little data; 3: it could
    not be observed, or COMMAND ended too early."""
    from memforensics.cli.screen.live import progress
    from memforensics.jobs.case.files import check_output, write_text
    from memforensics.jobs.experiment.ci import gate, parse_fail_on
    from memforensics.remedies.catalogue import load_catalogue
    from memforensics.report.json.experiment import gate as gate_json
    from memforensics.report.junit import junit_xml
    from memforensics.report.markdown import report_markdown
    from memforensics.target.cmdline import harmless_command

    failing, catalogue = parse_fail_on(fail_on), load_catalogue(remedies)
    for output in filter(None, (junit, report)):
        check_output(output)
    with progress("diagnosing the command", quiet=json) as on_progress:
        found = gate(
            command,
            name=name or " ".join(harmless_command(command)),
            seconds=duration,
            warmup_s=warmup,
            fail_on=failing,
            record=record,
            on_progress=on_progress,
            catalogue=catalogue,
        )
    lines = [f"{'PASSED' if found.passed else 'FAILED'}  {found.message}"]
    if found.case and found.diagnosis and found.case_file:
        page = report or found.case_file.with_suffix(".md")
        write_text(report_markdown(found.case, found.diagnosis), page)
        lines.append(f"report: {page}   case: {found.case_file}")
    if junit is not None:
        write_text(junit_xml([found]), junit)
    if json:
        print_json(gate_json([found]))
    else:
        say("\n".join(lines))
    return found.exit_code
