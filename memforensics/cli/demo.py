"""memforensics demo: a real leak, started here and investigated."""

from pathlib import Path
from typing import Annotated

import typer

from memforensics.cli.common import BECAUSE, LEAST_S, JsonOption, duration_option, say

EXAMPLES = (
    "memforensics demo",
    "memforensics demo --ucx-version 1.21.0",
    "memforensics demo --record ucx.case",
)


def demo(
    ucx_version: Annotated[
        str, typer.Option("--ucx-version", metavar="V", help="The UCX in it: up to 1.20.x it leaks, from 1.21.0 not.")
    ] = "1.19.0",
    duration: Annotated[float, duration_option("How long to diagnose.", least=LEAST_S, because=BECAUSE)] = "30s",  # type: ignore[assignment]
    record: Annotated[Path | None, typer.Option("--record", metavar="CASE", help="Keep the case in this file.")] = None,
    json: JsonOption = False,
) -> int:
    """Reproduce a real leak here and investigate it: an inference-like service on the real UCX, no InfiniBand needed.

    The service makes its own virtual environment (in ~/.cache/memforensics, once), is diagnosed while it serves, and
    is stopped. Exit code 0 when the diagnosis says what is known of that version, 4 when it does not.
    """
    from memforensics.cli.screen.live import progress
    from memforensics.cli.screen.render import print_report
    from memforensics.jobs import demo as job

    def on_start(pid: int) -> None:
        say(f"started {job.LAUNCHER.parent.name} with UCX {ucx_version}: process {pid}", err=True)

    with progress("diagnosing the example", quiet=json) as on_progress:
        outcome = job.demo(
            ucx_version,
            duration,
            record=record,
            on_progress=on_progress,
            on_start=on_start,
            on_output=lambda line: say(line, err=True),
        )
    print_report(outcome.case, outcome.diagnosis, "json" if json else "terminal")
    if outcome.path is not None and not json:
        say(f"\ncase: {outcome.path}")
    return outcome.exit_code
