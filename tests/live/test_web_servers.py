"""Real servers: their launchers are never named."""

import contextlib
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli import diagnose
from processes import LEAKERS, Child, running
from tracing import Traced, line_of

from memforensics.analysis.application import package_path
from memforensics.analysis.frames import caller_of, layer_of
from memforensics.case.model import AllocationSite, Caller
from memforensics.probes.base import Budget
from memforensics.probes.ebpf.mmap.probe import mmap_trace
from memforensics.target import open_process
from memforensics.target.tree import descendants

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf, pytest.mark.needs_web]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    def __init__(self, child: Child, port: int) -> None:
        self.child, self.port = child, port

    def get(self, path: str) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as reply:
            reply.read()


@contextlib.contextmanager
def serving(name: str, *arguments: str) -> Iterator[Server]:
    port = free_port()
    command: list[str | Path] = [Path(os.environ["MEMFORENSICS_WEB_DIR"]) / "bin" / name]
    command += [word.replace("PORT", str(port)) for word in arguments]
    with running(command, env={"PYTHONPATH": str(LEAKERS)}, ready=None) as child:
        server = Server(child, port)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                server.get("/")
                break
            time.sleep(0.05)
        yield server


def traced_sites(server: Server, paths: list[str], pids: list[int]) -> list[AllocationSite]:
    with contextlib.ExitStack() as opened:
        processes = [opened.enter_context(contextlib.closing(open_process(pid))) for pid in pids]
        trace = mmap_trace()
        trace.open(processes, Budget(seconds=4))
        try:
            it = Traced(server.child, trace)
            for path in paths:
                server.get(path)
                it.poll()
            return it.result().sites
        finally:
            trace.close()


def callers(sites: list[AllocationSite]) -> dict[tuple[str, str], Caller]:
    found = [caller for site in sites if (caller := caller_of(site.stack.frames)) is not None]
    return {(package_path(caller.file), caller.function): caller for caller in found}


def test_behind_uvicorn_the_application_is_named_or_said_to_be_absent() -> None:
    with serving("uvicorn", "--port", "PORT", "--log-level", "error", "web_app:app") as server:
        sites = traced_sites(server, ["/keep", "/big"] * 5, [server.child.pid])
    named = callers(sites)
    kept = [c for s in sites if s.outstanding_count == 5 and (c := caller_of(s.stack.frames)) is not None]
    assert (kept[0].function, kept[0].line) == ("keep", line_of("web_app.py", "keep"))
    assert any(f.function == "<module>" and "bin/uvicorn" in (f.file or "") for s in sites for f in s.stack.frames)
    assert {path for (path, _), caller in named.items() if caller.application} == {"web_app.py"}
    assert {path for (path, _), caller in named.items() if not caller.application} - {"uvicorn"}
    assert not any("bin/uvicorn" in caller.file for caller in named.values())


def test_behind_gunicorn_the_application_is_named_in_each_worker() -> None:
    with serving("gunicorn", "-w", "3", "-b", "127.0.0.1:PORT", "--log-level", "error", "web_app:wsgi") as server:
        workers = descendants(server.child.pid)
        assert len(workers) == 3
        sites = traced_sites(server, ["/keep"] * 30, [server.child.pid, *workers])
    named = callers(sites)
    assert {path for (path, _), caller in named.items() if caller.application} == {"web_app.py"}
    kept = [site for site in sites if (c := caller_of(site.stack.frames)) is not None and c.function == "keep"]
    assert {site.pid for site in kept} <= set(workers)
    mapped = [site for site in kept if layer_of(site) == "anon-mmap"]  # a new arena of Python is 1 MiB too
    assert sum(site.outstanding_count for site in mapped if site.outstanding_bytes >= 1 << 20) == 30


def test_three_workers_with_the_same_leak_are_one_finding(tmp_path: Path) -> None:
    with serving("gunicorn", "-w", "3", "-b", "127.0.0.1:PORT", "--log-level", "error", "web_app:wsgi") as server:
        done = threading.Event()

        def load() -> None:
            while not done.wait(0.02):
                server.get("/keep")

        with ThreadPoolExecutor(1) as pool:
            pool.submit(load)
            try:
                report = diagnose(server.child.pid, tmp_path)
            finally:
                done.set()
        workers = set(descendants(server.child.pid))
    finding = report["findings"][0]
    assert (finding["layer"], finding["culprit"]["function"]) == ("anon-mmap", "keep")
    assert set(finding["members"]) == workers
    assert finding["share"] > 0.8
    assert not [f for f in report["findings"][1:] if (f["culprit"] or {}).get("function") == "keep"]
    assert "in 3 processes" in report["headline"]
