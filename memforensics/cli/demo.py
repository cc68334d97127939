"""`memforensics demo`."""

from typing import Annotated

import typer

from memforensics.cli.common import JsonOption, RecordOption, say, verdict_duration_option

EXAMPLES = ("memforensics demo", "memforensics demo --ucx-version 1.21.0", "memforensics demo --record ucx.case")


def demo(
    ucx_version: Annotated[
        str,
        typer.Option(
            "--ucx-version", metavar="V", help="The UCX version: up to 1.20.x it leaks, since 1.21.0 it does not."
        ),
    ] = "1.19.0",
    duration: Annotated[float, verdict_duration_option("How long to diagnose.")] = "30s",  # type: ignore[assignment]
    record: RecordOption = None,
    json: JsonOption = False,
) -> int:
    """Reproduce a real leak on this machine and diagnose it: a service like an inference server, on the real UCX.

    It needs no InfiniBand. The first run makes a virtual environment in ~/.cache/memforensics. The service is stopped
    at the end. Exit code 0: the diagnosis is right for that version; 4: it is not.
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
