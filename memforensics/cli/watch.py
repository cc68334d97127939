"""`memforensics watch [PID]`."""

from memforensics.cli import watch_options as options
from memforensics.cli.common import RecordOption, RemediesOption
from memforensics.cli.target import TargetChoice, with_target

EXAMPLES = (
    "memforensics watch 4711",
    "memforensics watch 4711 --duration 2m --record leak.case",
    "memforensics watch --cmdline 'vllm serve' --json --until growing",
    "memforensics watch --name vllm --prometheus 9105 --on-leak 'systemctl restart vllm'",
)


@with_target
def watch(
    target: TargetChoice,
    children: options.Children = True,
    restarts: options.Restarts = False,
    interval: options.Interval = "1s",  # type: ignore[assignment]
    duration: options.Duration = None,
    record: RecordOption = None,
    until: options.Until = None,
    on_leak: options.OnLeak = None,
    prometheus: options.Prometheus = None,
    remedies: RemediesOption = None,
    address: options.Address = "127.0.0.1",
    json_lines: options.JsonLines = False,
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
    if restarts and target.pid is not None:
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
    controls = Controls()
    ticks = job(
        target.choose(),
        children=children,
        interval_s=interval,
        seconds=duration,
        record=record,
        until=until,
        search=until == "leak" or on_leak is not None,
        catalogue=catalogue,
        find_restarted=(lambda: restarted_pid(target.name, target.cmdline, target.container)) if restarts else None,
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
