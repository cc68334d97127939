"""Who a process is: start, program, runtimes, cgroup, environment."""

import contextlib
import os
import sys
import time
from pathlib import Path

import pytest
from processes import compiled, python, running

from memforensics.jobs.targets.identity import identify
from memforensics.target import open_process
from memforensics.target.describe import describe
from memforensics.target.software import runtimes_of

pytestmark = pytest.mark.live


def test_target_of_a_running_program() -> None:
    environment = {"UCX_TLS": "tcp", "VLLM_API_KEY": "hidden", "SOMETHING_ELSE": "private"}
    command: list[str | Path] = [compiled("own_layers.c"), "anon", "1", "4096"]
    with running(command, env=environment) as child, contextlib.closing(open_process(child.pid)) as process:
        found = describe(process)
    assert abs(found.start_wall_ns - time.time_ns()) < 60e9
    assert found.exe == str(compiled("own_layers.c"))
    assert found.cmdline[1:] == ("...",)
    assert found.ppid == os.getpid()
    assert "glibc" in {runtime.name for runtime in found.runtimes}
    assert [v.value for v in found.environment if v.name == "UCX_TLS"] == ["tcp"]
    assert not {"VLLM_API_KEY", "SOMETHING_ELSE"} & {v.name for v in found.environment}


def test_python_version_is_recognised() -> None:
    with running(python("own_objects.py", "1")) as child, contextlib.closing(open_process(child.pid)) as process:
        versions = {runtime.name: runtime.version for runtime in describe(process).runtimes}
    assert versions["cpython"] == f"{sys.version_info.major}.{sys.version_info.minor}"


def test_variable_set_by_the_program_is_read_live() -> None:
    with running(python("own_setenv.py")) as child, contextlib.closing(open_process(child.pid)) as process:
        at_exec = {v.name: v.value for v in describe(process).environment}
        live = {(v.name, v.value, v.source) for v in identify(process).environment}
    assert "UCX_RCACHE_MAX_UNRELEASED" not in at_exec
    assert ("UCX_RCACHE_MAX_UNRELEASED", "1024", "live") in live
    assert "OWN_PASSWORD" not in {name for name, _, _ in live}


@pytest.mark.parametrize(
    ("path", "name", "version"),
    [
        ("/usr/lib/libc-2.31.so", "glibc", "2.31"),
        ("/opt/lib/libpython3.12.so.1.0", "cpython", "3.12"),
        ("/x/_core.cpython-313-x86_64-linux-gnu.so", "cpython", "3.13"),
        ("/x/libucs-b1a2c3d4.so.0.0.0 (deleted)", "ucx", None),
        ("/usr/lib/jvm/lib/server/libjvm.so", "jvm", None),
    ],
)
def test_runtimes_by_file_names(path: str, name: str, version: str | None) -> None:
    (found,) = runtimes_of([path, "/bin/true", str(Path("/data/model.gguf"))])
    assert (found.name, found.version) == (name, version)
