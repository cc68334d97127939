"""The arithmetic of the benchmark, and its parsers of the output of other programs."""

import itertools
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import tracer_stacks as stacks  # a script's folder, no package
from tracer import parse
from tracer_statistics import estimate, estimate_ratio
from tracer_workloads import KINDS

sys.path.pop()

UCX, CHURN = KINDS["ucx"], KINDS["churn"]


# k of n values: the critical values of Wilcoxon's signed-rank test, two-sided 5%, plus one (Wilcoxon 1945)
@pytest.mark.parametrize(("n", "k"), [(6, 1), (8, 4), (10, 9), (15, 26), (20, 53)])
def test_interval_is_bounded_by_the_means_of_two(n: int, k: int) -> None:
    values = [2.0**i for i in range(n)]
    found = estimate(values)
    means = sorted((a + b) / 2 for a, b in itertools.combinations_with_replacement(values, 2))
    assert (found.low, found.high) == (means[k - 1], means[-k])


def test_too_few_pairs_have_no_interval() -> None:
    found = estimate([1.0, 3.0, 2.0])
    assert (found.median, found.smallest, found.largest, found.low, found.high) == (2.0, 1.0, 3.0, None, None)
    with pytest.raises(ValueError, match="no values"):
        estimate([])


@given(st.lists(st.floats(0.01, 100.0), min_size=6, max_size=25))
def test_interval_of_inverted_ratios_is_inverted(ratios: list[float]) -> None:
    found, inverse = estimate_ratio(ratios), estimate_ratio([1 / ratio for ratio in ratios])
    assert found.low is not None
    assert inverse.high is not None
    assert found.low == pytest.approx(1 / inverse.high)
    assert found.smallest <= found.low * (1 + 1e-9)


def test_a_target_without_work_is_no_error() -> None:
    assert estimate_ratio([0.0, 0.0, 0.1]).median == 0.0


def test_perf_script() -> None:
    text = """\
   syscalls:sys_exit_mmap:
              10182a mmap64
                1147 middle
               27250 [unknown]
               2720a __libc_start_call_main

syscalls:sys_enter_munmap:
              101829 munmap

   syscalls:sys_exit_mmap:
              10182a mmap64

"""
    assert list(stacks.of_perf_script(text.splitlines())) == [
        (["mmap64", "middle", "?", "__libc_start_call_main"], 1),
        (["mmap64"], 1),
    ]


def test_bpftrace() -> None:
    text = "Attaching 2 probes...\n\n@[\n    mmap64+58\n    0x7f00\n]: 3\n@[]: 2\n@freed: 7\n"
    assert list(stacks.of_bpftrace(text)) == [(["mmap64", "?"], 3), ([], 2)]


def test_gdb() -> None:
    text = """\
#0  0x00007ff in __GI___mmap64 (addr=0x0) at mmap64.c:58
#1  0x0000555 in leaf () at a.c:1
#2  main () at a.c:2
#0  __GI_munmap () at munmap.S:1
#1  main () at a.c:2
#0  0x1 in ?? ()
"""
    assert list(stacks.of_gdb(text)) == [(["__GI___mmap64", "leaf", "main"], 1), (["?"], 1)]


def test_memleak() -> None:
    text = """\
[06:41:20] Top 10 stacks with outstanding allocations:
	4096 bytes in 2 allocations from stack
		0x0000555 leaf+0x16 [a.out]
		[unknown] [libc.so.6]
		[unknown]
[06:41:21] Top 10 stacks with outstanding allocations:
"""
    assert list(stacks.of_memleak(text)) == [(["leaf", "?", "?"], 2)]


def test_memforensics_output_with_trailing_text() -> None:
    frame = {"kind": "python", "function": "handle", "file": "/srv/service.py"}
    text = 'x\n{"sites": [{"outstanding_bytes": 0, "stack": [%s]}]}\nmemforensics: interrupted {\n'
    assert list(stacks.of_memforensics(text % str(frame).replace("'", '"'))) == [(["service.py:handle"], 1)]


def test_folded() -> None:
    assert list(stacks.of_folded("main;f(int);g+0x3 12\nnonsense\n")) == [(["g", "f(int)", "main"], 12)]


def test_results_of_a_tool_are_judged_by_their_stacks() -> None:
    leak = ["syscall", "ucs_mpool_grow", "ucm_override_munmap", "service.py:handle", "_start"]
    found = stacks.judged([(["mmap", "?"], 9), (leak, 1)], UCX)
    assert (found.events, found.frames, found.whole, found.python) == (10, 1.0, 0.1, 0.1)
    assert found.words(UCX) == "1 frame; the leak's: 5 frames, whole 100%, Python line 100%"
    assert stacks.judged([(["mmap", "?"], 9)], UCX).words(UCX) == "1 frame; the leak's: not seen"
    assert stacks.judged([], CHURN).words(CHURN) == "no stack"


def test_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert ended.value.code == 0
    assert "--overhead 1%;" in capsys.readouterr().out
