"""The command line: all commands, and the handling of errors."""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from memforensics import __version__
from memforensics.cli.common import say
from memforensics.cli.groups import WIDTH, Group, epilog
from memforensics.errors import Interrupted, MemforensicsError, refusal

# In the order of --help, the main ones first. Each is cli/NAME.py with a function of that name.
COMMANDS: tuple[str, ...] = (
    "diagnose",
    "watch",
    "trace_mmap",
    "trace_faults",
    "hooks",
    "stacks",
    "heap",
    "snapshot",
    "diff",
    "prove",
    "ci",
    "report",
    "case",
    "remedies",
    "doctor",
    "demo",
)

app = typer.Typer(
    name="memforensics",
    cls=Group,
    help="Memory-leak forensics on live inference processes: which layer grows, through whose code, "
    "what to set, and the proof.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
)


def _print_version(asked: bool) -> None:
    if asked:
        say(f"memforensics {__version__}")
        raise typer.Exit


@app.callback(
    epilog=epilog(
        (
            "memforensics diagnose 4242",
            "memforensics diagnose --name llama-server",
            "memforensics diagnose -h",
        )
    )
)
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    del version  # its callback has printed it


for _name in COMMANDS:
    _module = importlib.import_module(f"memforensics.cli.{_name}")
    if hasattr(_module, "group"):
        app.add_typer(_module.group, name=_name.replace("_", "-"))
    else:
        app.command(
            _name.replace("_", "-"),
            epilog=epilog(getattr(_module, "EXAMPLES", ())),
            context_settings=getattr(_module, "CONTEXT", None),
        )(getattr(_module, _name))


def run(arguments: list[str], interrupted: Callable[[], bool] = lambda: False) -> int:
    """Runs one command line; returns the exit code. Tracebacks appear only if MEMFORENSICS_DEBUG is set. `interrupted`:
    whether a KeyboardInterrupt was raised, which may have left a library partly imported."""
    try:
        result = app(args=arguments, prog_name="memforensics", standalone_mode=False)
        sys.stdout.flush()
        if result == Interrupted.exit_code:  # what typer makes of a KeyboardInterrupt
            return _say(Interrupted())
        return result if isinstance(result, int) else 0
    except KeyboardInterrupt:
        return _say(Interrupted())
    except MemforensicsError as error:
        if os.environ.get("MEMFORENSICS_DEBUG"):
            raise
        return _say(error)
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):  # typer exits 1 for a closed pipe, which means leak here
            raise
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the flush at exit
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("MEMFORENSICS_DEBUG"):
            raise
        shown = getattr(error, "show", None)  # click's own errors: usage, abort
        if shown is not None:
            shown()
            return int(getattr(error, "exit_code", 2))
        if type(error).__name__ == "Abort" or interrupted():
            return _say(Interrupted())  # Ctrl-C or the end of input at a question
        refused = refusal(error)
        if refused is not None:
            with contextlib.suppress(OSError):  # else the exit would try to write the rest again
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return _say(refused)
        return _say(
            MemforensicsError(
                f"memforensics failed: {type(error).__name__}: {error}",
                why="this is a bug in memforensics",
                enable="please report it with the output of MEMFORENSICS_DEBUG=1",
            )
        )


def _say(error: MemforensicsError) -> int:
    with contextlib.suppress(OSError):  # stderr is full or closed too: only the exit code is left
        say(f"memforensics: {error.what}", err=True)
        if error.why:
            say(f"  why: {error.why}", err=True)
        if error.enable:
            say(f"  do:  {error.enable}", err=True)
    return error.exit_code
