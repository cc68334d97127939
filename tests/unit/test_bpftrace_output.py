"""What bpftrace prints, read."""

import json

from hypothesis import given
from hypothesis import strategies as st

from memforensics.probes.ebpf.bpftrace import parse_output, parse_stack, sites_of

# As bpftrace 0.17 printed it on a C program with frame pointers.
WHOLE = (
    "\n\t7f7e280719b3 __mmap64+19 (/usr/lib/x86_64-linux-gnu/libc.so.6)"
    "\n\t55e06b1fb251 keep_blocks+29 (/srv/a (b)/leaker)"
    "\n\t55e06b1fb34a main+154 (/srv/a (b)/leaker)\n\t7f7e27f9724a __libc_start_call_main+122 (/usr/lib/libc.so.6)\n"
)
CUT = "\n\t7f7e280719b3 0x7f7e280719b3 ([unknown])\n"


def test_a_complete_stack() -> None:
    stack = parse_stack(WHOLE)
    assert [f.function for f in stack.frames] == ["__mmap64", "keep_blocks", "main", "__libc_start_call_main"]
    assert stack.frames[1].module == "/srv/a (b)/leaker"
    assert stack.complete


def test_an_incomplete_stack() -> None:
    stack = parse_stack(CUT)
    assert [(f.function, f.module) for f in stack.frames] == [(None, None)]
    assert not stack.complete
    assert not parse_stack("\n").complete


def test_outstanding_is_mapped_less_unmapped() -> None:
    lines = [
        {"type": "attached_probes", "data": {"probes": 7}},
        {"type": "map", "data": {"@mapped_bytes": {WHOLE: 40960, CUT: 8192}}},
        {"type": "map", "data": {"@mapped_count": {WHOLE: 10, CUT: 2}}},
        {"type": "map", "data": {"@outstanding_bytes": {WHOLE: 4096, CUT: 8192}}},
        {"type": "map", "data": {"@outstanding_count": {WHOLE: 1, CUT: 2}}},
        {"type": "map", "data": {"@not_recorded": 3}},
    ]
    printed = parse_output("\n".join(json.dumps(line) for line in lines) + "\nnot json\n")
    assert (printed.number("@not_recorded"), printed.number("@failed"), printed.unparsed_lines) == (3, 0, 1)
    first, second = sites_of(printed, 7, 100, 200)
    assert (first.outstanding_bytes, first.outstanding_count, first.freed_count) == (8192, 2, 0)
    assert (second.outstanding_bytes, second.freed_bytes, second.freed_count) == (4096, 36864, 9)
    assert first.site_id != second.site_id


@given(st.text())
def test_no_text_breaks_the_parsers(text: str) -> None:
    printed = parse_output(text)
    assert printed.unparsed_lines <= len(text.splitlines())
    stack = parse_stack(text)
    assert len(stack.frames) <= len(text.splitlines())
