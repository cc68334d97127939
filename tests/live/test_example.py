"""The example answers every request, and leaks 144 bytes per munmap exactly with the UCX versions that leak."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import EXAMPLE, Child, running

from memforensics.target import open_process

pytestmark = [pytest.mark.live, pytest.mark.needs_ucx]
Command = Callable[..., list[str | Path]]
MUNMAPS_PER_REQUEST = 64
LEAK_BYTES = 144  # a munmap, openucx/ucx 1.17.0 to 1.20.x


def served(child: Child) -> int:
    """Asks for the counts now. Every request must have been answered."""
    os.kill(child.pid, signal.SIGUSR1)
    words = child.wait_for("served").split()
    assert words[3] == "0", "a request failed"
    return int(words[1])


def growth_per_munmap(child: Child, requests: int) -> tuple[float, int]:
    """RssAnon's growth a munmap while `requests` are served, after a warm-up of as many; and the RssShmem it has."""
    process = open_process(child.pid)
    try:
        first = served(child)
        while (before := served(child)) < first + requests // 2:
            pass
        rss_before = process.sample().rss_anon
        while (after := served(child)) < before + requests:
            pass
        sample = process.sample()
    finally:
        process.close()
    return (sample.rss_anon - rss_before) / ((after - before) * MUNMAPS_PER_REQUEST), sample.rss_shmem


@pytest.mark.parametrize(
    ("version", "options", "env", "expected"),
    [
        ("1.19.0", ["--shared"], {}, LEAK_BYTES),
        ("1.19.0", ["--private"], {}, LEAK_BYTES),
        ("1.19.0", [], {"UCX_MEM_MMAP_HOOK_MODE": "reloc"}, LEAK_BYTES),
        ("1.19.0", [], {"UCX_MEM_MMAP_HOOK_MODE": "none"}, 0),
        ("1.19.0", [], {"UCX_RCACHE_MAX_UNRELEASED": "1024"}, 0),
        ("1.21.0", [], {}, 0),
    ],
)
def test_example_leaks_exactly_in_leaking_versions(
    ucx_example: Command, version: str, options: list[str], env: dict[str, str], expected: int
) -> None:
    command = ucx_example(version, "--rate", "max", "--report-every", "600", *options)
    with running(command, env=env, timeout=300) as child:
        per_munmap, shmem = growth_per_munmap(child, requests=1500)
    assert per_munmap == pytest.approx(expected, abs=10)  # the pool grows in steps
    assert shmem < 1 << 20, "staging buffers stay"


def test_example_leaks_in_workers_of_a_parent(ucx_example: Command) -> None:
    with running(ucx_example("1.19.0", "--workers", "2", "--report-every", "0.2"), ready=None, timeout=300) as parent:
        ready = parent.wait_for("ready", timeout=300)
        workers = [int(pid) for pid in ready.split("workers=")[1].split(",")]
        assert len(workers) == 2
        assert all(open_process(pid).stat().ppid == parent.pid for pid in workers)
        while int(parent.wait_for("served").split()[1]) < 20:
            pass
        modules = {m.path.rsplit("/", 1)[-1] for m in open_process(parent.pid).maps().mappings}
        assert not any(name.startswith("libuc") for name in modules), "the parent has no UCX"
        parent.popen.send_signal(signal.SIGTERM)
        assert parent.popen.wait(timeout=20) == 0


def test_growth_stops_at_the_limit(ucx_example: Command) -> None:
    with running(ucx_example("1.19.0", "--rate", "max", "--max-rss", "110M", "--report-every", "600")) as child:
        child.wait_for("capped", timeout=60)
        process = open_process(child.pid)
        at_the_cap = served(child)
        growth = process.sample().growth_metric
        assert abs(served(child) - at_the_cap) <= 64
        assert process.sample().growth_metric - growth < 2 << 20
        process.close()
        child.popen.send_signal(signal.SIGTERM)
        assert child.popen.wait(timeout=20) == 0


def test_environment_is_made_once_and_reused(ucx_example: Command) -> None:
    made = subprocess.run([sys.executable, EXAMPLE, "--prepare"], capture_output=True, text=True, check=True)
    again = subprocess.run([sys.executable, EXAMPLE, "--prepare"], capture_output=True, text=True, check=True)
    assert again.stdout == made.stdout
    assert again.stderr == "", "a second run makes nothing"
    assert os.access(made.stdout.strip(), os.X_OK)
