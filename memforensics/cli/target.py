"""The choice of a target on the command line: a PID, or --name, --cmdline and --container."""

import inspect
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter
from typing import TYPE_CHECKING, Annotated, Concatenate, ParamSpec, TypeVar

import typer

from memforensics.cli.common import say
from memforensics.errors import LIST_TARGETS, UsageError
from memforensics.text import visible
from memforensics.units import size_text

if TYPE_CHECKING:
    from memforensics.jobs.targets.choose import Candidate

P = ParamSpec("P")
R = TypeVar("R")

PidArgument = Annotated[
    int | None, typer.Argument(metavar="PID", help="The process. Without it, likely targets are listed.")
]
NameOption = Annotated[str | None, typer.Option("--name", help="Choose the process by its name (comm).")]
CmdlineOption = Annotated[
    str | None, typer.Option("--cmdline", metavar="REGEX", help="Choose the process by its command line.")
]
ContainerOption = Annotated[
    str | None,
    typer.Option("--container", metavar="ID", help="Choose the first process of a container, by ID or name."),
]


@dataclass(frozen=True, slots=True)
class TargetChoice:
    """The criteria that the user gave."""

    pid: int | None = None
    name: str | None = None
    cmdline: str | None = None
    container: str | None = None

    @property
    def is_by_option(self) -> bool:
        return bool(self.name or self.cmdline or self.container)

    def choose(self, *, show_cmdline: bool = False) -> int:
        """`choose_pid` with these criteria."""
        return choose_pid(self.pid, self.name, self.cmdline, self.container, show_cmdline=show_cmdline)


def with_target_options(command: Callable[Concatenate[TargetChoice, P], R]) -> Callable[..., R]:
    """Adds --name, --cmdline and --container to a command, which gets them as its first argument."""
    return _with_options(command, [])


def with_target(command: Callable[Concatenate[TargetChoice, P], R]) -> Callable[..., R]:
    """As `with_target_options`, with the argument PID."""
    return _with_options(command, [_parameter("pid", PidArgument)])


def _with_options(command: Callable[Concatenate[TargetChoice, P], R], first: list[Parameter]) -> Callable[..., R]:
    def run(**values: object) -> R:
        criteria = {name: values.pop(name) for name in TargetChoice.__dataclass_fields__ if name in chosen}
        return command(TargetChoice(**criteria), **values)  # type: ignore[arg-type, call-arg]

    last = [_parameter("name", NameOption), _parameter("cmdline", CmdlineOption)]
    last.append(_parameter("container", ContainerOption))
    chosen = {parameter.name for parameter in (*first, *last)}
    signature = inspect.signature(command, eval_str=True)
    own = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in signature.parameters.values()][1:]
    run.__signature__ = signature.replace(parameters=[*first, *own, *last])  # type: ignore[attr-defined]
    run.__doc__ = command.__doc__
    return run


def _parameter(name: str, annotation: object) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def choose_pid(
    pid: int | None,
    name: str | None,
    cmdline: str | None,
    container: str | None = None,
    *,
    show_cmdline: bool = False,
) -> int:
    """The PID of the one process or process tree that matches. UsageError if there is none, or more than one. Without
    any criterion it lists likely targets, largest first, and raises UsageError."""
    from memforensics.jobs.targets import choose as targets
    from memforensics.jobs.targets.containers import only_root

    if sum(criterion is not None for criterion in (pid, name or cmdline, container)) > 1:
        raise UsageError(
            "the process is chosen in two ways", enable="use a PID, or --container, or --name and --cmdline"
        )
    if pid is not None:
        return pid
    if container is not None:
        return only_root(container)
    found = targets.find(name=name, cmdline=cmdline)
    width = shutil.get_terminal_size((120, 24)).columns
    if name is None and cmdline is None:
        say("Choose a process. Likely targets, largest first:\n", err=True)
        say(candidates_text(found[:15], width=width, show_cmdline=show_cmdline), err=True)
        raise UsageError("no PID given", enable="name one of these PIDs, or use --name, --cmdline or --container")
    found = targets.roots(found)
    if len(found) == 1:
        return found[0].pid
    criteria = " and ".join(repr(word) for word in (name, cmdline) if word is not None)
    if not found:
        raise UsageError(f"no process matches {criteria}", enable=LIST_TARGETS)
    say(candidates_text(found[:15], width=width, show_cmdline=show_cmdline), err=True)
    raise UsageError(f"{len(found)} process trees match {criteria}", enable="name one of these PIDs")


def candidates_text(candidates: "list[Candidate]", *, show_cmdline: bool = False, width: int = 120) -> str:
    """The candidates as text, a line of at most `width` columns each. Of a command line it shows the words known to be
    harmless, or everything with `show_cmdline`."""
    from memforensics.target.cmdline import harmless_command

    rows = [f"{'PID':>8}  {'RSS':>9}  {'role':<18}  command"]
    for c in candidates:
        line = visible(" ".join(c.words if show_cmdline else harmless_command(c.words))) or visible(c.comm)
        row = f"{c.pid:>8}  {size_text(c.rss_bytes):>9}  {c.role or '':<18}  {line}"
        rows.append(row if show_cmdline else row[:width])
    return "\n".join(rows)
