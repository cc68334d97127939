"""`memforensics hooks PID`."""

from memforensics.cli.common import JsonOption, RecordOption, print_json, say
from memforensics.cli.target import TargetChoice, with_target

EXAMPLES = (
    "memforensics hooks 4242",
    "memforensics hooks --name VLLM::EngineCor --json",
)


@with_target
def hooks(
    target: TargetChoice,
    json: JsonOption = False,
    record: RecordOption = None,
) -> None:
    """Show which libraries intercept mmap, munmap, brk, malloc and similar functions in a live process, and how.

    Compares every GOT slot with the address that the dynamic linker would bind, and the code at each function's entry
    with the mapped file (an inline patch leaves the GOT unchanged). The process is not stopped or modified.
    """
    from memforensics.jobs.hooks import hooks as run

    view = run(target.choose(), record=record)
    if json:
        from memforensics.report.json.probes import hooks as shape

        print_json(shape(view))
        return
    from memforensics.report.sentences import loss_text
    from memforensics.report.terminal.console import Console
    from memforensics.report.terminal.probes import hooks_screen

    Console(highlight=False).print(hooks_screen(view))
    for loss in view.losses:
        say(f"not checked: {loss_text(loss)}", err=True)
