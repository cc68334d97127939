"""The example runs a program from its cache only if nobody else could have put it there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import EXAMPLE

pytestmark = [pytest.mark.live, pytest.mark.needs_root]

PLANTED = "#!/bin/sh\ntouch {}\n"


def plant(cache: Path, marker: Path) -> None:
    """A complete environment whose python is another user's program, for each tag that the example may look for."""
    listed = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(EXAMPLE.parent)!r}); import run;"
         "from pathlib import Path; import venv; venv.EnvBuilder.create = lambda *a: sys.exit(str(a[1]));"
         f"run.environment('1.19.0', Path({str(cache / 'probe')!r}))"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    folder = cache / Path(listed.stderr.strip().splitlines()[-1]).name
    (folder / "bin").mkdir(parents=True)
    (folder / "complete").touch()
    python = folder / "bin" / "python"
    python.write_text(PLANTED.format(marker))
    python.chmod(0o755)
    for place in (cache, folder, folder / "bin", python):
        os.chown(place, 12345, 12345)


def chosen_cache(**environment: str) -> Path:
    """Where the example would keep its environments."""
    code = f"import sys; sys.path.insert(0, {str(EXAMPLE.parent)!r}); import run; print(run.default_cache())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, check=True
    )
    return Path(done.stdout.decode().strip())


def test_program_of_another_user_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    cache = tmp_path / "home" / "memforensics"
    cache.mkdir(parents=True)
    plant(cache, marker)
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--cache", str(cache)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "belongs to user 12345" in done.stderr
    assert not marker.exists()


def test_cache_writable_by_others_is_skipped(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "memforensics").mkdir(parents=True)
    assert chosen_cache(XDG_CACHE_HOME=str(home)) == home / "memforensics"
    os.chown(home, 12345, 12345)
    assert chosen_cache(XDG_CACHE_HOME=str(home)) == Path("/var/cache/memforensics")
    os.chown(home, 0, 0)
    home.chmod(0o777)
    assert chosen_cache(XDG_CACHE_HOME=str(home)) == Path("/var/cache/memforensics")


def test_temporary_cache_has_an_unpredictable_name(tmp_path: Path) -> None:
    """As a user whose home is read-only."""
    code = (
        f"import os, sys; os.setuid(12345); os.environ['HOME'] = '/proc'; sys.path.insert(0, {str(EXAMPLE.parent)!r});"
        "import run; print(run.default_cache()); print(run.default_cache())"
    )
    done = subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, check=True, cwd="/")
    first, second = map(Path, done.stdout.decode().split())
    assert first != second
    for folder in (first, second):
        assert folder.stat().st_mode & 0o077 == 0
        folder.rmdir()
