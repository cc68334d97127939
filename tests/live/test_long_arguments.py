"""A process whose arguments or environment span 12 GiB: no command reads more than a bounded part of them."""

import resource
import subprocess
import sys

import pytest
from processes import compiled, running

pytestmark = [pytest.mark.live, pytest.mark.needs_root]

LIMIT = 2 << 30  # bytes of address space: the first version passed 5 GiB in seconds


def limited(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "memforensics", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
    )


@pytest.mark.parametrize("what", ["arguments", "environment"])
def test_only_a_part_is_read(what: str) -> None:
    with running([compiled("own_long_arguments.c"), what]) as child:
        done = limited("snapshot", child.pid, "--json")
        assert done.returncode == 0, done.stderr
        assert "aaaaaaaaaaaaaaaa" not in done.stdout
        listed = limited("snapshot", "--name", "own_long_argume", "--json")
        assert listed.returncode == 0, listed.stderr
        watched = limited("watch", child.pid, "--json", "--duration", "2s")
        assert watched.returncode in (0, 4), watched.stderr
