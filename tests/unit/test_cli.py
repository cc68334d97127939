"""The command line: help, examples, refused arguments, and the choice of a process."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from processes import python, running

from memforensics import __version__
from memforensics.cli.app import app, run
from memforensics.cli.target import choose_pid
from memforensics.errors import NoSuchProcess, PermissionNeeded, UsageError
from memforensics.jobs.stacks import is_library

ROOT: Any = typer.main.get_command(app)


def help_of(words: list[str], columns: int) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "memforensics", *words, "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": str(columns)},
    )  # fmt: skip
    return done.stdout


def commands(command: Any = ROOT, *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group: its words and what Typer made of it."""
    yield above, command
    for name in getattr(command, "commands", {}):
        yield from commands(command.commands[name], *above, name)


def examples() -> list[tuple[tuple[str, ...], str]]:
    """(words of the command, example line) of every --help."""
    return [
        (words, line.strip())
        for words, command in commands()
        for line in (command.epilog or "").splitlines()
        if line.strip() and line.strip() not in ("\b", "Examples:")
    ]


def parsed(words: list[str]) -> Any:
    """The innermost command's context: every word was understood, nothing has run."""
    context = ROOT.make_context("memforensics", words)
    while hasattr(context.command, "commands"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = context.command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return context


def test_version_prints_the_version_and_exits_0() -> None:
    done = subprocess.run([sys.executable, "-m", "memforensics", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"memforensics {__version__}", "")


@pytest.mark.parametrize("columns", [80, 120])
def test_root_help_shows_the_whole_first_sentence_of_each_command(columns: int) -> None:
    text = help_of([], columns)
    assert "..." not in text.replace("[ARGS]...", "")
    lines = text.splitlines()
    assert max(map(len, lines)) <= columns
    for name, command in ROOT.commands.items():
        at = next(i for i, line in enumerate(lines) if line.startswith(f"  {name} "))
        following = iter(lines[at + 1 :])
        whole = lines[at].split(None, 1)[1]
        while (line := next(following)).startswith(" " * 16):
            whole += " " + line.strip()
        assert whole.replace("- ", "-").endswith("."), (name, whole)
        assert command.help.startswith(whole[:20])


def test_help_uses_wide_terminals() -> None:
    assert max(map(len, help_of([], 120).splitlines())) > 100
    assert max(map(len, help_of(["diagnose"], 120).splitlines())) > 90


@pytest.mark.parametrize(
    ("words", "command"), [pytest.param(*item, id=" ".join(item[0]) or "root") for item in commands()]
)
def test_every_help_has_examples(words: tuple[str, ...], command: Any) -> None:
    assert "Examples:" in (command.epilog or "")


@pytest.mark.parametrize(("words", "line"), examples(), ids=lambda value: value if isinstance(value, str) else None)
def test_every_example_parses(words: tuple[str, ...], line: str) -> None:
    first, *rest = shlex.split(line, comments=True)
    assert first == "memforensics"
    assert tuple(rest[: len(words)]) == words or words[-1] in ("list",)  # `case FILE` is `case list FILE`
    if rest[-1] not in ("-h", "--help", "--version"):
        assert parsed(rest).command is not ROOT


@pytest.mark.parametrize("line", [line for _, line in examples()])
def test_every_example_is_one_command_in_an_interactive_shell(line: str) -> None:
    """bash expands ! and others outside of single quotes: the words must arrive as shlex reads them."""
    script = f"set -o history; set -o histexpand; memforensics() {{ printf '%s\\0' \"$@\"; }}\n{line}\n"
    done = subprocess.run(["bash", "--norc", "-i"], input=script, capture_output=True, text=True, timeout=20)
    assert "event not found" not in done.stderr
    assert done.stdout.split("\0")[:-1] == shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize(
    "words",
    [
        ("diagnose", "1", "--duration", "0"),
        ("diagnose", "1", "--duration", "500ms"),
        ("trace-mmap", "1", "--duration", "0"),
        ("trace-faults", "1", "--duration", "500ms"),
        ("heap", "1", "--memray", "--yes", "--duration", "0"),
        ("stacks", "1", "--on", "mmap", "--timeout", "0"),
        ("stacks", "1", "--on", "mmap", "--max-stopped", "0"),
        ("demo", "--duration", "0"),
        ("diff", "1", "--over", "0"),
        ("watch", "1", "--duration", "0"),
        ("ci", "--duration", "0", "--", "true"),
        ("prove", "--env", "A=1", "--duration", "0", "--", "true"),
    ],
    ids=" ".join,
)
def test_too_short_duration_is_refused_with_the_reason(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(list(words)) == 2
    assert "at least" in capsys.readouterr().err


# --- which process -----------------------------------------------------------------------------------------------

TREE = "import os,sys,time\nif os.fork(): print('ready', flush=True)\ntime.sleep(60)"


def named(tmp_path: Path) -> str:
    """A Python with a name (comm) of its own."""
    name = f"mf-{os.getpid()}"
    (tmp_path / name).write_bytes(Path(sys.executable).resolve().read_bytes())
    (tmp_path / name).chmod(0o755)
    return name


def test_name_shared_by_server_and_workers_selects_the_server(tmp_path: Path) -> None:
    name = named(tmp_path)
    with running([tmp_path / name, "-c", TREE], env={"PYTHONHOME": sys.base_prefix}) as child:
        assert choose_pid(None, name, None) == child.pid
        assert choose_pid(None, None, f"{name} -c") == child.pid


def test_name_of_two_process_trees_lists_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = named(tmp_path)
    command, env = [str(tmp_path / name), "-c", TREE], {"PYTHONHOME": sys.base_prefix}
    with running(command, env=env) as one, running(command, env=env) as other:
        assert run(["hooks", "--name", name]) == 2
        errors = capsys.readouterr().err
        assert f"2 process trees match '{name}'" in errors
        assert str(one.pid) in errors
        assert str(other.pid) in errors


def test_process_chosen_in_two_ways_is_refused() -> None:
    with pytest.raises(UsageError, match="two ways"):
        choose_pid(1, "init", None)
    with pytest.raises(UsageError, match="two ways"):
        choose_pid(1, None, None, "0123456789ab")


def test_cmdline_does_not_match_our_own_launchers() -> None:
    word = f"nothing-else-has-this-{os.getpid()}"
    done = subprocess.run(
        ["timeout", "60", sys.executable, "-m", "memforensics", "hooks", "--cmdline", word],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no process matches" in done.stderr


@pytest.mark.parametrize(
    "command",
    ["diagnose", "watch", "snapshot", "hooks", "stacks", "heap", "trace-mmap", "trace-faults", "doctor", "diff"],
)
def test_every_command_that_takes_a_pid_takes_a_container(command: str) -> None:
    names = {option for parameter in ROOT.commands[command].params for option in parameter.opts}
    assert {"--container", "--name", "--cmdline"} <= names


@pytest.mark.parametrize("words", [("diagnose", "1"), ("watch", "1"), ("ci", "--", "true"), ("report", "a.case")])
def test_bad_user_catalogue_entry_is_reported_before_observing(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ours.toml").write_text("id = 1")
    assert run([words[0], "--remedies", str(tmp_path), *words[1:]]) == 2
    assert "ours.toml" in capsys.readouterr().err


# --- what helps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["watch", "diagnose"])
def test_suggested_command_is_never_the_one_that_failed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["4194301"], [], ["--name", "no-such-name"]):
        assert run([command, *words]) in (2, 3)
        suggested = [
            line.split("do:")[1].split("  (")[0].strip()
            for line in capsys.readouterr().err.splitlines()
            if "do:" in line
        ]
        assert " ".join(["memforensics", command, *words]) not in suggested


@pytest.mark.needs_root
@pytest.mark.parametrize("words", [("hooks",), ("diagnose", "--duration", "10s")])
def test_other_user_gets_the_same_command_with_sudo(words: tuple[str, ...]) -> None:
    """With the full path: sudo's own PATH does not have a virtual environment."""
    with running(python("diag_keep_mappings.py", "--rate", "1")) as child:
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
        done = subprocess.run(
            [*nobody, sys.executable, "-m", "memforensics", words[0], str(child.pid), *words[1:]],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 3
    expected = shlex.join(["sudo", sys.executable, "-m", "memforensics", words[0], str(child.pid), *words[1:]])
    assert f"do:  {expected}" in done.stderr
    assert "mount" not in done.stderr


def test_root_without_the_capability_gets_no_sudo_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "sudo" not in PermissionNeeded("x", privilege="CAP_BPF").enable
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["/opt/a b/bin/memforensics", "hooks", "7"])
    assert PermissionNeeded("x", privilege="CAP_BPF").enable.startswith(
        "sudo '/opt/a b/bin/memforensics' hooks 7   (or"
    )
    assert "COMMAND" not in NoSuchProcess(1).enable


@pytest.mark.parametrize(
    ("text", "name", "is_it"),
    [
        ("libucs.so.0", "libucs.so.0.0.0", True),
        ("libucs", "libucs-3ab1.so.0.0.0", True),
        ("libucs.so.0.0.0", "libucs.so.0.0.0", True),
        ("libucs", "libucsx.so.0", False),
        ("libuc", "libucs.so.0", False),
    ],
)
def test_library_matches_by_soname_or_start_of_its_name(text: str, name: str, is_it: bool) -> None:
    assert is_library(text, name, f"/lib/{name}", None) is is_it
