"""memforensics doctor: what this host allows, and what enables the rest."""

from typing import Annotated

import typer

from memforensics.cli.common import CmdlineOption, ContainerOption, JsonOption, NameOption, choose_pid, print_json

EXAMPLES = (
    "memforensics doctor",
    "memforensics doctor 4242",
    "memforensics doctor --json",
)


def doctor(
    pid: Annotated[
        int | None, typer.Argument(metavar="PID", help="Also: whether this process can be observed.")
    ] = None,
    json: JsonOption = False,
    name: NameOption = None,
    cmdline: CmdlineOption = None,
    container: ContainerOption = None,
) -> int:
    """Show what this host allows (kernel, capabilities, eBPF tried for real, tools), and what enables what is missing.

    Exit code 0 when everything that diagnose needs is there, else 3.
    """
    from memforensics.jobs.doctor import examine

    if name or cmdline or container:
        pid = choose_pid(pid, name, cmdline, container)
    examination = examine(pid)
    if json:
        from memforensics.report.json.probes import doctor as shape

        print_json(shape(examination))
    else:
        from memforensics.report.terminal.console import Console
        from memforensics.report.terminal.probes import doctor_screen

        Console(highlight=False).print(doctor_screen(examination))
    return examination.exit_code
