"""200 secrets in command lines and environments of a tree: memforensics writes none of them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from planted import planted
from processes import Child, compiled, python, running

from memforensics.cli.target import candidates_text
from memforensics.jobs.targets import choose as targets

pytestmark = pytest.mark.live

SECRETS = [secret for _, _, secret in planted()]


def found_in(text: str | bytes) -> list[str]:
    data = text if isinstance(text, bytes) else text.encode()
    return [secret for secret in SECRETS if secret.encode() in data]


def memforensics(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "memforensics", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def tree() -> Iterator[Child]:
    with running(python("own_planted.py", str(compiled("own_pause.c"))), timeout=60) as child:
        yield child


@pytest.fixture(scope="module")
def case(tree: Child, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "tree.case"
    done = memforensics("watch", tree.pid, "--json", "--duration", "5s", "--record", path)
    assert done.returncode in (0, 4), done.stderr
    assert found_in(done.stdout + done.stderr) == []
    return path


def test_secrets_are_visible_in_proc(tree: Child) -> None:
    """Else the others prove nothing."""
    workers = [c.pid for c in targets.find(name="own_pause") if c.ppid == tree.pid]
    read = b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for pid in workers for name in ("cmdline", "environ"))
    assert found_in(read) == SECRETS


def test_case_file_has_no_secret(case: Path) -> None:
    assert found_in(case.read_bytes()) == []
    assert case.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "words",
    ["report {}", "report {} --format md", "report {} --format json", "case {}", "case list {} --json"],
)
def test_reports_have_no_secret(case: Path, words: str) -> None:
    done = memforensics(*words.format(case).split())
    assert len(done.stdout) > 100, done.stderr
    assert found_in(done.stdout + done.stderr) == []


def test_process_list_has_no_secret(tree: Child) -> None:
    listed = candidates_text(targets.find(name="own_pause"), width=100_000)
    assert len(listed.splitlines()) == len(SECRETS) + 1
    assert found_in(listed) == []
    assert len(found_in(candidates_text(targets.find(name="own_pause"), show_cmdline=True))) > 100


def test_files_of_ci_have_no_secret(tmp_path: Path) -> None:
    junit, case = tmp_path / "leak.xml", tmp_path / "ci.case"
    words = [
        "--api-key",
        "sk-abcdefgh12345678",
        "--password=hunter2horse",
        "redis://:correcthorse@host",
        "plainsecret1",
    ]
    done = memforensics(
        "ci", "--duration", "10s", "--junit", junit, "--record", case, "--", compiled("own_pause.c"), *words
    )
    assert junit.exists(), done.stderr
    for text in (done.stdout, done.stderr, junit.read_text(), case.with_suffix(".md").read_text()):
        for secret in ("sk-abcdefgh", "hunter2", "correcthorse", "plainsecret"):
            assert secret not in text
    assert b"hunter2" not in case.read_bytes()
    assert {path.stat().st_mode & 0o777 for path in (junit, case, case.with_suffix(".md"))} == {0o600}
