"""`memforensics trace-faults [PID]...`."""

from memforensics.cli import trace_options as options
from memforensics.cli.common import JsonOption, RecordOption
from memforensics.cli.target import TargetChoice, with_target_options

EXAMPLES = (
    "memforensics trace-faults 4711",
    "memforensics trace-faults 4711 4712 --duration 60s --sort rate --filter lib=libtorch",
    "memforensics trace-faults 4711 --format html --output touched.html",
)


@with_target_options
def trace_faults(
    target: TargetChoice,
    pids: options.Pids = None,
    duration: options.Duration = "10s",  # type: ignore[assignment]
    children: options.Children = True,
    sort: options.Sort = "outstanding",
    top: options.Top = 15,
    filters: options.Filters = None,
    min_age: options.MinAge = "0s",  # type: ignore[assignment]
    stacks: options.Stacks = False,
    format: options.Format = "text",
    output: options.Output = None,
    overhead: options.Overhead = None,
    as_json: JsonOption = False,
    record: RecordOption = None,
) -> None:
    """Show what makes RSS grow, in any layer: page faults by Python and native stack, with eBPF.

    It shows which code touches new memory first: a hint, not proof, of what leaks. The process is not modified.
    """
    from memforensics.cli import trace_run

    what = trace_run.What("faults", duration, children, sort, filters, min_age, "bcc", record, overhead)
    shown = trace_run.Shown("json" if as_json else format, output, top, stacks, quiet=as_json)
    trace_run.run(what, shown, pids, target)
