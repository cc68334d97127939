"""A name of a container is asked of a runtime, whose answer may be anything."""

import os
from pathlib import Path

import pytest

from memforensics.errors import UsageError
from memforensics.jobs.targets.containers import answer, container_roots

ID = "ab" * 32


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (f"printf '\\033]0;owned\\a\\377 {ID}'", f"\x1b]0;owned\x07\ufffd {ID}"),
        (f"echo {ID}; exit 1", ""),
        (f"echo {ID}; yes", ""),
        (f"echo {ID}; sleep 30", ""),
        (f"echo {ID}; sleep 30 & exit 0", ""),
        (f"echo {ID} >&2", ""),
    ],
    ids=["odd bytes", "failed", "too much", "no end", "a child holds the pipe", "on stderr"],
)
def test_an_answer_is_bounded(script: str, expected: str) -> None:
    assert answer(["/bin/sh", "-c", script], limit_s=0.5) == expected


def test_a_name_that_no_runtime_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\nprintf 'Error: \\033[2J no such object --password=hunter2'\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UsageError, match="no running container") as caught:
        container_roots("web\x1b[2J")
    assert "hunter2" not in str(caught.value)
    assert "\x1b" not in caught.value.what
