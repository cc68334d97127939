"""`memforensics hooks PID`."""

from memforensics.cli.common import (
    CmdlineOption,
    ContainerOption,
    JsonOption,
    NameOption,
    PidArgument,
    RecordOption,
    choose_pid,
    print_json,
    say,
)

EXAMPLES = (
    "memforensics hooks 4242",
    "memforensics hooks --name VLLM::EngineCor --json",
)


def hooks(
    pid: PidArgument = None,
    json: JsonOption = False,
    record: RecordOption = None,
    name: NameOption = None,
    cmdline: CmdlineOption = None,
    container: ContainerOption = None,
) -> None:
    """Say who intercepts mmap, munmap, brk, malloc and their kin in a live process, and how.

    Compares every GOT slot with where the dynamic linker would have bound it, and the code at each function's entry
    with the mapped file (an inline patch leaves the GOT clean). Reads only: nothing stops, nothing is written.
    """
    from memforensics.jobs.hooks import hooks as run

    view = run(choose_pid(pid, name, cmdline, container), record=record)
    if json:
        print_json(view.json())
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from memforensics.report.terminal.console import Console

    console = Console(highlight=False)
    if view.hooks:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for title in ("function", "mechanism", "goes to", "how"):
            table.add_column(title, overflow="fold")
        for row in view.rows():
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        for hook in view.hooks[:1]:
            console.print(Text(" -> ".join(hook.chain)), style="dim")
    console.print(Text(view.summary()))
    for loss in view.losses:
        say(f"not seen or worth knowing: {loss.what} ({loss.count})", err=True)
