"""watch on the real leak until the verdict: the search for the cause, the alarm, the metrics, exit code 1."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import python, running

from memforensics.case.store import CaseFile
from memforensics.jobs.case.conclude import conclude_case

pytestmark = pytest.mark.live

WATCH = [sys.executable, "-m", "memforensics", "watch"]
TELL = "import os, sys; open(sys.argv[1], 'a').write(repr({k: os.environ[k] for k in sys.argv[2:]}) + chr(10))"
TOLD = [f"MEMFORENSICS_{name}" for name in ("PID", "VERDICT", "HEADLINE", "CASE", "CAUSE", "LAYER", "BYTES_PER_MINUTE")]


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.needs_bpf
@pytest.mark.needs_ucx
def test_verdict_is_leak_once_the_cause_is_found(ucx_example: Callable[..., list[str | Path]], tmp_path: Path) -> None:
    case, rung = tmp_path / "leak.case", tmp_path / "rung"
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with running(ucx_example("1.19.0", "--rate", "160", "--seconds", "90"), timeout=60) as child:
        words = ["--until", "leak", "--duration", "80s", "--interval", "500ms", "--json", "--record", str(case)]
        words += ["--prometheus", str(port), "--on-leak", f'{sys.executable} -c "{TELL}" {rung} {" ".join(TOLD)}']
        with subprocess.Popen([*WATCH, str(child.pid), *words], stdout=subprocess.PIPE) as watcher:
            assert watcher.stdout is not None
            lines: list[dict[str, Any]] = []
            metrics = ""
            for text in watcher.stdout:
                lines.append(json.loads(text))
                if lines[-1]["search"] and not metrics:
                    metrics = scraped(port)
            code = watcher.wait()
        assert child.alive
    last = lines[-1]
    assert code == 1
    assert (last["verdict"], last["ended"]) == ("leak", "the verdict is leak")
    assert last["findings"][0]["cause"] == "ucx-invq"
    assert "libucs" in last["headline"]
    assert 'memforensics_verdict{verdict="growing"} 1.0' in metrics
    (environment,) = rung.read_text().splitlines()
    assert f"'MEMFORENSICS_PID': '{child.pid}'" in environment
    assert "'MEMFORENSICS_CAUSE': 'ucx-invq'" in environment
    assert f"'MEMFORENSICS_CASE': '{case}'" in environment
    with CaseFile.open(case) as file:
        kept = conclude_case(file.load())
    assert (kept.verdict, kept.findings[0].cause) == ("leak", "ucx-invq")


def test_ending_the_watch_ends_its_search(tmp_path: Path) -> None:
    with running(python("watch_grower.py", "leak", "300")) as child:
        words = ["--until", "leak", "--interval", "250ms", "--json"]
        with subprocess.Popen([*WATCH, str(child.pid), *words], stdout=subprocess.PIPE) as watcher:
            assert watcher.stdout is not None
            next(line for line in map(json.loads, watcher.stdout) if line["search"])
            (search,) = psutil.Process(watcher.pid).children()
            watcher.send_signal(signal.SIGINT)
            watcher.stdout.read()
        assert watcher.returncode == 130
        assert not search.is_running()
        assert child.alive
