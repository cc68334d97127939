"""`memforensics watch [PID]`."""

from typing import Annotated, Literal

import typer

from memforensics.cli.common import (
    CmdlineOption,
    ContainerOption,
    NameOption,
    PidArgument,
    RecordOption,
    RemediesOption,
    choose_pid,
    duration_option,
)

EXAMPLES = (
    "memforensics watch 4711",
    "memforensics watch 4711 --duration 2m --record leak.case",
    "memforensics watch --cmdline 'vllm serve' --json --until growing",
    "memforensics watch --name vllm --prometheus 9105 --on-leak 'systemctl restart vllm'",
)


def watch(
    pid: PidArgument = None,
    name: NameOption = None,
    cmdline: CmdlineOption = None,
    container: ContainerOption = None,
    children: Annotated[bool, typer.Option(help="Include its child processes.")] = True,
    restarts: Annotated[
        bool, typer.Option(help="With --name, --cmdline or --container: if it exits, wait for it to start again.")
    ] = False,
    interval: Annotated[float, duration_option("Time between two readings.", "--interval")] = "1s",  # type: ignore[assignment]
    duration: Annotated[
        float | None,
        duration_option(
            "How long. Without it: until q, Ctrl-C or its exit.", least=1, because="growth needs two readings"
        ),
    ] = None,
    record: RecordOption = None,
    until: Annotated[
        Literal["growing", "leak"] | None, typer.Option(help="End as soon as this is the verdict.")
    ] = None,
    on_leak: Annotated[
        str | None,
        typer.Option(metavar="CMD", help="Run this command once if the verdict is leak."),
    ] = None,
    prometheus: Annotated[
        int | None, typer.Option(metavar="PORT", help="Serve Prometheus metrics on this port.")
    ] = None,
    remedies: RemediesOption = None,
    address: Annotated[str, typer.Option(help="The address on which --prometheus listens.")] = "127.0.0.1",
    json_lines: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line, one line per reading.")
    ] = False,
) -> int:
    """Watch a process and its children live: RSS by layer, growth rate, time to the limit, verdict.

    It can run for weeks: its memory, its CPU time and the case file stay small, and old readings are kept sparsely.
    On a terminal, q ends it and ? explains the screen.
    Growth alone does not prove a leak. With --until leak or --on-leak, growth starts a search for its cause (diagnose,
    for 12 to 60 s; again after 10 minutes, and then less and less often).
    CMD gets MEMFORENSICS_PID, MEMFORENSICS_VERDICT and MEMFORENSICS_HEADLINE in its environment, and if known
    MEMFORENSICS_CASE, _CAUSE, _LAYER, _BYTES_PER_MINUTE and _SECONDS_TO_LIMIT. It runs without a shell.
    Exit code of the last verdict: 0 steady, bounded or retention; 1 leak; 4 growing, or too little data."""
    from memforensics.errors import Interrupted, UsageError

    if interval <= 0:
        raise UsageError("--interval must be more than 0", enable="--interval 1s")
    if restarts and pid is not None:
        raise UsageError(
            "--restarts does not work with a PID",
            why="a restarted process has another PID",
            enable="use --restarts with --name, --cmdline or --container",
        )

    from memforensics.cli.screen.watch_out import Controls, show, with_outputs
    from memforensics.jobs.targets.choose import restarted_pid
    from memforensics.jobs.watch.loop import watch as job
    from memforensics.remedies.catalogue import load_catalogue

    catalogue = load_catalogue(remedies)
    target = choose_pid(pid, name, cmdline, container)
    controls = Controls()
    ticks = job(
        target,
        children=children,
        interval_s=interval,
        seconds=duration,
        record=record,
        until=until,
        search=until == "leak" or on_leak is not None,
        catalogue=catalogue,
        find_restarted=(lambda: restarted_pid(name, cmdline, container)) if restarts else None,
        sleep=controls.sleep,
        stop=controls.stop,
    )
    listen = (address, prometheus) if prometheus is not None else None
    ticks = with_outputs(ticks, on_leak=on_leak, record=record, prometheus=listen)
    try:
        last = show(ticks, controls, json_lines=json_lines, interval_s=interval, record=record)
    except KeyboardInterrupt:
        raise Interrupted(str(record) if record else None) from None
    return last.diagnosis.exit_code if last is not None else 4
