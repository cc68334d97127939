"""`memforensics doctor`."""

from typing import Annotated

import typer

from memforensics.cli.common import JsonOption, print_json
from memforensics.cli.target import TargetChoice, choose_pid, with_target_options

EXAMPLES = (
    "memforensics doctor",
    "memforensics doctor 4242",
    "memforensics doctor --json",
)


@with_target_options
def doctor(
    target: TargetChoice,
    pid: Annotated[
        int | None, typer.Argument(metavar="PID", help="Also check whether this process can be observed.")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Check what this host allows (kernel, capabilities, eBPF, tools), and say how to enable what is missing.

    The eBPF checks load real programs. Exit code 0: everything that diagnose needs is available; else 3.
    """
    from memforensics.jobs.doctor import examine

    if target.is_by_option:
        pid = choose_pid(pid, target.name, target.cmdline, target.container)
    examination = examine(pid)
    if json:
        from memforensics.report.json.probes import doctor as shape

        print_json(shape(examination))
    else:
        from memforensics.report.terminal.console import Console
        from memforensics.report.terminal.probes import doctor_screen

        Console(highlight=False).print(doctor_screen(examination))
    return examination.exit_code
