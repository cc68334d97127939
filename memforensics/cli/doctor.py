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
        print_json(examination.as_json())
        return examination.exit_code
    from rich.table import Table
    from rich.text import Text

    from memforensics.report.terminal.console import Console

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for check in examination.checks:
        mark, style = ("ok", "green") if check.ok else ("NO", "bold red") if check.essential else ("no", "yellow")
        what = Text(check.why)
        if check.enable and not check.ok:
            what.append(f"\ndo: {check.enable}", style="cyan")
        table.add_row(Text(mark, style=style), Text(check.name), what)
    console = Console(highlight=False)
    console.print(table)
    missing = [check.name for check in examination.checks if check.essential and not check.ok]
    if missing:
        console.print(Text(f"\ndiagnose is limited here, or cannot run. Missing: {', '.join(missing)}.", style="bold"))
    else:
        console.print("\ndiagnose has everything it needs here, stacks included.")
    return examination.exit_code
