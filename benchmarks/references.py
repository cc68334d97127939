"""How often a search for pointers calls a block lost: healthy programs that keep what they map, in many ways, and
programs that do not. Each is traced from its beginning for some seconds; of every site with enough old blocks, of any
layer, a sample is searched for twice, as diagnose does for sites of anonymous mappings.

    references.py [--seconds 6] [--markdown]
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from processes import LEAKERS, Child, compiled, python, running  # noqa: E402

from memforensics.analysis.frames import layer_of  # noqa: E402
from memforensics.analysis.survival import LEAST_TESTED, lower_limit  # noqa: E402
from memforensics.case.model import AllocationSite  # noqa: E402
from memforensics.probes.base import Budget  # noqa: E402
from memforensics.probes.ebpf.mmap.probe import mmap_trace  # noqa: E402
from memforensics.probes.heap.references import old_blocks, search  # noqa: E402
from memforensics.target import open_process  # noqa: E402

HEALTHY_C = ("array", "interior", "packed", "tagged", "pages", "file", "chain", "guarded", "epoll", "fifo")
PYTHON = ("objects", "addresses", "arrays", "buffers", "threads", "small")


@dataclass(frozen=True)
class Result:
    program: str
    layer: str
    sites: int
    tested: int
    lost: int
    called_lost: int  # sites
    mib: float  # read by one search
    seconds: float  # that it took


def programs(folder: Path) -> Iterator[tuple[str, list[str | Path]]]:
    for how in HEALTHY_C:
        yield f"C, {how}", [compiled("keep_pointers.c"), how, "300"]
    for how in PYTHON:
        yield f"Python, {how}", python("keep_mappings.py", how)
    if shutil.which("go"):
        binary = folder / "keep_go"
        subprocess.run(["go", "build", "-o", binary, LEAKERS / "keep_go.go"], check=True)
        for how in ("mapped", "heap"):
            yield f"Go, {how}", [binary, how]
    if shutil.which("java"):
        for how in ("direct", "heap"):
            yield f"Java, {how}", ["java", "-Xmx2g", "-XX:MaxDirectMemorySize=2g", LEAKERS / "KeepJava.java", how]
    if shutil.which("node"):
        for how in ("buffers", "objects"):
            yield f"Node, {how}", ["node", LEAKERS / "keep_node.js", how]
    yield "blind spot: C, xor", [compiled("keep_pointers.c"), "xor", "300"]
    yield "lost: C, lost", [compiled("keep_pointers.c"), "lost", "300"]
    yield "lost: Python, forgotten", python("keep_mappings.py", "forgotten")
    yield "half lost: C, half", [compiled("keep_pointers.c"), "half", "300"]


def measure(program: str, child: Child, seconds: float) -> Iterator[Result]:
    trace = mmap_trace()
    with closing(open_process(child.pid)) as process:
        trace.open(process, Budget(seconds=seconds))
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                list(trace.poll())
                time.sleep(0.1)
            now, chance = time.monotonic_ns(), random.Random(1)
            sampled = {
                s.site_id: old_blocks(s.blocks, s.cohorts, now, chance) for s in trace.accounting.blocks(child.pid)
            }
            sampled = {number: blocks for number, blocks in sampled.items() if len(blocks) >= LEAST_TESTED}
            began = time.monotonic()
            first = search(process, [block for blocks in sampled.values() for block in blocks])
            took = time.monotonic() - began
            time.sleep(2)
            list(trace.poll())
            standing = {block for site in trace.accounting.blocks(child.pid) for block in site.blocks}
            second = search(process, first.unreferenced & standing)
        finally:
            sites = {site.site_id: site for site in trace.close() if isinstance(site, AllocationSite)}
    by_layer: dict[str, list[int]] = {}
    for number in sampled:
        by_layer.setdefault(layer_of(sites[number]), []).append(number)
    for layer, numbers in by_layer.items():
        counts = [(len(sampled[n]), len(second.unreferenced.intersection(sampled[n]))) for n in numbers]
        yield Result(
            program,
            layer,
            len(numbers),
            sum(tested for tested, _ in counts),
            sum(lost for _, lost in counts),
            sum(lower_limit(lost, tested) >= 0.5 for tested, lost in counts),
            first.bytes_read / 2**20,
            took,
        )
    if not by_layer:
        yield Result(program, "-", 0, 0, 0, 0, 0.0, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print("| program | layer | sites | blocks | lost | sites called lost | MiB read | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for program, command in programs(Path(folder)):
            if options.only not in program:
                continue
            with running(command, timeout=60) as child:
                for r in measure(program, child, options.seconds):
                    figures = f"{r.tested} | {r.lost} | {r.called_lost} | {r.mib:.0f} | {r.seconds:.2f}"
                    print(f"| {r.program} | {r.layer} | {r.sites} | {figures} |", flush=True)


main()
