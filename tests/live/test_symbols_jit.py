"""Code that no file has, named by the map that its compiler writes for perf."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from processes import LEAKERS, Child, running
from tracing import pythons

from memforensics.case.model import AllocationSite
from memforensics.jobs.trace.run import trace_ticks
from memforensics.symbols.address_space import AddressSpace
from memforensics.target import open_process

pytestmark = pytest.mark.live

BUFFERS, BUFFER_BYTES = 5, 4 * 1024 * 1024 + 4096


@contextlib.contextmanager
def mapped(command: Sequence[str | Path]) -> Iterator[Child]:
    """The process; the map that it leaves is taken away after it."""
    with running(command) as child:
        try:
            yield child
        finally:
            Path(f"/tmp/perf-{child.pid}.map").unlink(missing_ok=True)


def largest_site(child: Child, line: str) -> AllocationSite:
    """Of what it maps while it does as told."""
    done = False
    ticks = trace_ticks([child.pid], seconds=30, stop=lambda: done)
    with contextlib.closing(ticks):
        for tick in ticks:
            if tick.phase == "tracing" and not done:
                child.tell(line)
                child.wait_for("done")
                done = True
    sites = [site for group in tick.view.groups for site in group.sites]
    return max(sites, key=lambda site: site.outstanding_bytes)


def natives(site: AllocationSite) -> list[str]:
    return [frame.function or "" for frame in site.stack.frames if frame.kind == "native"]


@pytest.mark.needs_bpf
def test_node_tells_its_functions(tmp_path: Path) -> None:
    """--always-sparkplug: every function is compiled at its first call."""
    if shutil.which("node") is None:
        pytest.skip("needs node")
    flags = ["--perf-basic-prof", "--always-sparkplug", "--no-opt", f"--logfile={tmp_path / 'v8.log'}"]
    if subprocess.run(["node", *flags[1:], "-e", "0"], capture_output=True, check=False).returncode:
        pytest.skip("this node has not these flags")
    with mapped(["node", *flags, LEAKERS / "sym_jit.js"]) as child:
        site = largest_site(child, "go")
    assert (site.outstanding_bytes, site.outstanding_count) == (BUFFERS * (BUFFER_BYTES + 4096), BUFFERS)
    names = [found[1] for name in natives(site) if (found := re.match(r"JS:.?(\w+) \S*sym_jit\.js:\d+", name))]
    assert names == ["keepOne", "keepMany"]


def python_with_trampolines() -> str:
    """A CPython 3.12 or later that was built with trampolines for perf."""
    ask = "import sysconfig; print(sysconfig.get_config_var('PY_HAVE_PERF_TRAMPOLINE'))"
    for path in pythons(("3.12", "3.13")):
        if subprocess.run([path, "-c", ask], capture_output=True, text=True, check=True).stdout.strip() == "1":
            return path
    pytest.skip("needs a CPython 3.12 or later with trampolines")


@pytest.mark.needs_bpf
def test_cpython_tells_its_trampolines() -> None:
    with mapped([python_with_trampolines(), "-X", "perf", "-u", LEAKERS / "trace_python.py"]) as child:
        site = largest_site(child, "private 5 65536")
    assert site.outstanding_bytes == 5 * 65536
    told = [name for name in natives(site) if name.startswith("py::")]
    script = LEAKERS / "trace_python.py"
    assert told == [f"py::{name}:{script}" for name in ("keep_private", "main", "<module>")]
    python = [frame.function for frame in site.stack.frames if frame.kind == "python"]
    assert python == ["keep_private", "main", "<module>"]


def test_only_a_regular_file_of_its_own_user_is_believed() -> None:
    with running(["sleep", "60"], ready=None) as child, contextlib.closing(open_process(child.pid)) as process:
        path = Path(f"/tmp/perf-{child.pid}.map")
        code = next(m.start for m in process.maps().mappings if "x" in m.perms)
        try:
            path.write_text(f"{code:x} 1000 told\n")
            assert AddressSpace(process).jitted(code) == "told"
            if os.geteuid() == 0:
                os.chown(path, 12345, 12345)
                assert AddressSpace(process).jitted(code) is None
            path.unlink()
            path.symlink_to("/dev/zero")
            assert AddressSpace(process).jitted(code) is None
            path.unlink()
            os.mkfifo(path)
            assert AddressSpace(process).jitted(code) is None
        finally:
            path.unlink()
