"""Options of a long watch: metrics, restarts, containers; page cache, and pauses of memforensics."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from processes import python, running
from prometheus_client.parser import text_string_to_metric_families

from memforensics.case.store import CaseFile
from memforensics.jobs.targets.containers import container_roots
from memforensics.units import MIB

pytestmark = pytest.mark.live

WATCH = [sys.executable, "-m", "memforensics", "watch"]


@contextlib.contextmanager
def watching(*words: str | int | Path) -> Iterator[subprocess.Popen[bytes]]:
    watcher = subprocess.Popen(
        [*WATCH, *map(str, words), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        yield watcher
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(watcher.pid, signal.SIGKILL)
        watcher.wait()
        for stream in (watcher.stdout, watcher.stderr):
            assert stream is not None
            stream.close()


def lines(watcher: subprocess.Popen[bytes], most: int = 600) -> Iterator[dict[str, Any]]:
    assert watcher.stdout is not None
    for _ in range(most):
        text = watcher.stdout.readline()
        assert text, "it ended"
        yield json.loads(text)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def scrape(port: int) -> dict[str, dict[tuple[str, ...], float]]:
    """Metric -> label values, in the order of the labels' names -> value, over HTTP."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


def test_metrics_equal_the_json_lines() -> None:
    port = free_port()
    with running(python("watch_grower.py", "leak", "240")) as child:
        words = (child.pid, "--interval", "200ms", "--prometheus", port, "--duration", "60s")
        with watching(*words) as watcher:
            last = next(line for line in lines(watcher) if line["verdict"] == "growing" and line["layers"])
            os.kill(watcher.pid, signal.SIGSTOP)  # its metrics do not change now
            os.kill(watcher.pid, signal.SIGCONT)
            metrics = scrape(port)
    assert [str(child.pid) in labels for labels in metrics["memforensics_target_info"]] == [True]
    assert metrics["memforensics_processes"][()] == 1
    assert metrics["memforensics_rss_bytes"][()] == pytest.approx(last["rss_bytes"], rel=0.2)
    layers = {key[1]: value for key, value in metrics["memforensics_layer_bytes"].items()}
    assert {row["layer"] for row in last["layers"] if row["bytes"] is not None} <= set(layers)
    assert layers["anon-mmap"] > 32 * MIB
    rates = {key[0]: value * 60 for key, value in metrics["memforensics_growth_bytes_per_second"].items()}
    assert rates["estimate"] == pytest.approx(240 * MIB, rel=0.35)
    assert rates["low"] <= rates["estimate"] <= rates["high"]
    verdicts = {key[0]: value for key, value in metrics["memforensics_verdict"].items()}
    assert sorted(verdicts.values()) == [0, 0, 0, 0, 0, 1]


def test_metrics_listen_on_loopback_and_a_used_port_is_reported() -> None:
    with socket.socket() as taken, running(python("watch_grower.py", "flat", "0")) as child:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run([*WATCH, str(child.pid), "--prometheus", str(port)], capture_output=True, timeout=60)
        assert done.returncode == 2
        assert f"cannot listen on 127.0.0.1:{port}" in done.stderr.decode()
        free = free_port()
        with watching(child.pid, "--prometheus", free, "--address", "127.0.0.2") as watcher:
            next(lines(watcher))
            with pytest.raises(urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{free}/metrics", timeout=10)
            with urllib.request.urlopen(f"http://127.0.0.2:{free}/metrics", timeout=10) as answer:
                assert b"memforensics_rss_bytes" in answer.read()


def test_restarted_target_is_a_new_target_with_a_new_case(tmp_path: Path) -> None:
    name, case = f"mf-{os.getpid()}", tmp_path / "lives.case"
    program = tmp_path / name  # its own comm, so that no other process has it
    program.symlink_to(shutil.which("sleep") or "/bin/sleep")
    with subprocess.Popen([program, "600"]) as first:
        words = ("--name", name, "--restarts", "--interval", "100ms", "--record", case)
        try:
            with watching(*words) as watcher:
                ticks = lines(watcher)
                assert next(line for line in ticks if line["rss_bytes"])["pid"] == first.pid
                first.kill()
                assert next(line for line in ticks if line["ended"])["ended"] == f"process {first.pid}: it exited"
                with subprocess.Popen([program, "600"]) as second:
                    try:
                        line = next(line for line in ticks if line["pid"] == second.pid and line["rss_bytes"])
                        assert [member["pid"] for member in line["members"]] == [second.pid]
                        assert line["seconds"] < 60
                        watcher.send_signal(signal.SIGINT)
                        assert watcher.wait(timeout=30) == 130
                    finally:
                        second.kill()
        finally:
            first.kill()
    for path, pid in ((case, first.pid), (tmp_path / "lives-2.case", second.pid)):
        with CaseFile.open(path) as file:
            kept = file.load()
        assert {sample.pid for sample in kept.samples} == {pid}


def test_page_cache_of_a_mapped_file_is_not_growth(tmp_path: Path) -> None:
    """RssFile grows by 24 MiB in a line, RssAnon stays flat."""
    weights = tmp_path / "weights.bin"
    with weights.open("wb") as file:
        file.truncate(96 * MIB)
    scan = (
        "import mmap, sys, time\n"
        "file = open(sys.argv[1], 'rb')\n"
        "data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "print('ready', flush=True)\n"
        "for at in range(0, len(data), 1 << 18):\n"
        "    data[at : at + (1 << 18) : 4096]\n"
        "    time.sleep(0.1)\n"
        "time.sleep(60)\n"
    )
    with running([sys.executable, "-c", scan, weights]) as child:
        done = subprocess.run(
            [*WATCH, str(child.pid), "--json", "--interval", "250ms", "--duration", "8500ms"],
            stdout=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    last = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, last["headline"]
    assert last["verdict"] == "steady"
    assert next(row for row in last["layers"] if row["layer"] == "file")["change_bytes"] > 5 * MIB


def test_gap_while_memforensics_is_stopped_is_not_a_step() -> None:
    with running(python("watch_grower.py", "leak", "120")) as child:
        with watching(child.pid, "--interval", "200ms", "--duration", "10s") as watcher:
            ticks = lines(watcher)
            seen = [next(ticks)["seconds"] for _ in range(10)]
            os.kill(watcher.pid, signal.SIGSTOP)
            time.sleep(2.0)  # the gap itself
            os.kill(watcher.pid, signal.SIGCONT)
            last: dict[str, Any] = {}
            for last in ticks:
                seen.append(last["seconds"])
                if last["ended"]:
                    break
        assert max(b - a for a, b in pairwise(seen)) > 1.5
    assert last["verdict"] == "growing"
    assert last["growth"]["bytes_per_minute"]["estimate"] == pytest.approx(120 * MIB, rel=0.15)
    assert "samples skipped" in json.dumps(last["losses"])


UNIFIED = next(
    (Path(p) for p in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if Path(p, "cgroup.procs").exists()), None
)


@pytest.mark.needs_root
@pytest.mark.skipif(UNIFIED is None, reason="needs cgroup v2 mounted")
def test_container_is_found_by_the_id_in_its_cgroup() -> None:
    """A cgroup as docker makes it, with a process tree moved into it."""
    assert UNIFIED is not None
    name = os.urandom(32).hex()
    group = UNIFIED / f"docker-{name}.scope"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        with running(["/bin/sh", "-c", "echo ready; read line; sleep 60 & echo $!; wait"]) as child:
            (group / "cgroup.procs").write_text(str(child.pid))
            child.tell("go")
            child.read_line()
            assert container_roots(name[:12]) == [child.pid]
            done = subprocess.run([*WATCH, "--container", name, "--json", "--duration", "1s"], capture_output=True)
            assert json.loads(done.stdout.splitlines()[0])["pid"] == child.pid
    finally:
        for _ in range(100):
            with contextlib.suppress(OSError):
                group.rmdir()
            if not group.exists():
                break
            time.sleep(0.05)
    refused = subprocess.run([*WATCH, "--container", name], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "no running container" in refused.stderr
