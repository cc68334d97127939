"""`memforensics stacks PID --on mmap`."""

from typing import Annotated

import typer

from memforensics.cli.common import JsonOption, RecordOption, duration_option, print_json, say
from memforensics.cli.target import TargetChoice, with_target

EXAMPLES = (
    "memforensics stacks 4242 --on mmap --count 3",
    "memforensics stacks 4242 --on mmap --if 'length >= 1048576 && fd == -1' --json",
    "memforensics stacks 4242 --function 'libucs.so.0!ucs_mpool_grow'",
)


@with_target
def stacks(
    target: TargetChoice,
    on: Annotated[str | None, typer.Option("--on", metavar="SYSCALL", help="Stop at this system call.")] = None,
    function: Annotated[
        str | None, typer.Option(metavar="[LIBRARY!]NAME", help="Stop at the entry of this function (a breakpoint).")
    ] = None,
    condition: Annotated[
        str | None, typer.Option("--if", metavar="EXPR", help="Only if this is true: length == 16384, $rsi > 4096.")
    ] = None,
    count: Annotated[int, typer.Option(help="How many stacks to capture.")] = 1,
    timeout: Annotated[
        float,
        duration_option("Give up after this time.", "--timeout", least=1, because="attaching gdb takes up to a second"),
    ] = "30s",  # type: ignore[assignment]
    max_stopped: Annotated[
        float,
        duration_option(
            "The limit of all pauses together.",
            "--max-stopped",
            least=0.05,
            because="attaching alone takes tens of milliseconds",
        ),
    ] = "5s",  # type: ignore[assignment]
    json: JsonOption = False,
    record: RecordOption = None,
) -> int:
    """Capture a few full stacks with arguments and return values, with gdb. Each pause is measured and shown.

    Attaching stops the process for tens of milliseconds (longer with very many threads); each capture stops the calling
    thread for a few. Its code is not modified. With --on the process survives if gdb, memforensics or both are killed
    at any moment; SECURITY.md lists what remains. It needs root, or the user of the process.
    Exit code 4: nothing was captured, because no such call came or the condition was never true.
    """
    from memforensics.jobs.stacks import stacks as run

    view = run(
        target.choose(),
        on=on,
        function=function,
        condition=condition,
        count=count,
        timeout_s=timeout,
        max_stopped_s=max_stopped,
        record=record,
        warn=lambda text: say(f"warning: {text}", err=True),
    )
    if json:
        from memforensics.report.json.probes import stacks as shape

        print_json(shape(view))
    else:
        from memforensics.report.sentences import loss_text
        from memforensics.report.terminal.probes import stacks_text

        say(stacks_text(view))
        for loss in view.losses:
            say(f"not seen: {loss_text(loss)}", err=True)
    if view.nothing is not None:
        say(f"memforensics: {view.nothing}", err=True)
        return 4
    return 0
