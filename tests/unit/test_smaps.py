"""smaps, smaps_rollup, and the memory figures of status."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memforensics.target.parse import parse_rollup, tmpfs_devices
from memforensics.target.smaps import BLOCK, _decimals, _form_of, parse_smaps, read_smaps
from memforensics.units import KIB

# As Linux 6.18 prints one mapping.
ONE = """\
560259133000-560259135000 r--p 00000000 fe:00 260386                     /usr/bin/a name
Size:                  8 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                   8 kB
Pss:                   6 kB
Pss_Dirty:             0 kB
Private_Clean:         8 kB
Private_Dirty:         4 kB
Anonymous:             4 kB
AnonHugePages:         0 kB
ShmemPmdMapped:        0 kB
FilePmdMapped:      2048 kB
Swap:                 12 kB
Locked:                0 kB
THPeligible:           0
VmFlags: rd mr mw me
"""


def test_figures_are_in_bytes() -> None:
    parsed = parse_smaps(ONE)
    (mapping,) = parsed.mappings
    assert (mapping.start, mapping.end, mapping.path) == (0x560259133000, 0x560259135000, "/usr/bin/a name")
    assert (mapping.rss, mapping.pss, mapping.private_dirty) == (8 * KIB, 6 * KIB, 4 * KIB)
    assert (mapping.anonymous, mapping.swap, mapping.locked, mapping.anon_huge) == (4 * KIB, 12 * KIB, 0, 0)
    assert (mapping.shmem_huge, mapping.file_huge) == (0, 2048 * KIB)
    assert mapping.flags == "rd mr mw me"
    assert parsed.unparsed_lines == 0


def test_missing_fields_are_none() -> None:
    (mapping,) = parse_smaps("7f00-7f01 rw-p 00000000 00:00 0 \nRss:      4 kB\n").mappings
    assert mapping.rss == 4 * KIB
    assert mapping.swap is None
    assert mapping.locked is None


def test_unknown_lines_are_counted() -> None:
    assert parse_smaps("Rss: 4 kB\n" + ONE + "what is this\nRss:   many kB\n").unparsed_lines == 3


@given(st.lists(st.tuples(st.integers(1, 1 << 30), st.integers(0, 1 << 30)), max_size=20))
def test_every_mapping_keeps_its_own_figures(sizes: list[tuple[int, int]]) -> None:
    lines, at = [], 0x1000
    for pages, kib in sizes:
        lines.append(f"{at:x}-{at + pages * 4096:x} rw-p 00000000 00:00 0 \nRss: {kib} kB\nAnonymous: {kib} kB\n")
        at += (pages + 1) * 4096
    parsed = parse_smaps("".join(lines))
    assert [(m.size // 4096, m.rss, m.anonymous) for m in parsed.mappings] == [
        (pages, kib * KIB, kib * KIB) for pages, kib in sizes
    ]
    assert parsed.unparsed_lines == 0


OTHER = (
    ONE.replace("/usr/bin/a name", "")
    .replace("fe:00 260386", "00:00 0")
    .replace("Rss:                   8", "Rss:                  99")
)


def test_mappings_of_one_form_are_read_in_bulk() -> None:
    text = ONE + OTHER * 3
    form = _form_of(text.encode())
    assert form is not None
    assert form.parse(text.encode()) == parse_smaps(text).mappings
    assert [m.rss for m in parse_smaps(text).mappings] == [8 * KIB, *[99 * KIB] * 3]
    for odd in (
        ONE + OTHER[40:],
        ONE + OTHER.replace("Swap:", "Swop:"),
        ONE + OTHER.replace("     12 kB", "twelve kB"),
        ONE + OTHER.replace("     12 kB", "1 1 1 2 kB"),
        ONE + OTHER.replace("      12 kB", "10000000012 kB"),
        "x" + ONE,
    ):
        form = _form_of(odd.encode())
        assert form is None or form.parse(odd.encode()) is None
        assert read_smaps(io.BytesIO(odd.encode()).readinto) == parse_smaps(odd)


@given(st.lists(st.tuples(st.integers(0, 99_999_999), st.booleans()), min_size=1, max_size=9))
def test_decimals_of_eight_columns(numbers: list[tuple[int, bool]]) -> None:
    texts = [f"{number:08d}" if zeros else f"{number:8d}" for number, zeros in numbers]
    read = _decimals(np.frombuffer("".join(texts).encode(), "<u8"))
    assert read is not None
    assert read.tolist() == [number * KIB for number, _ in numbers]


@given(st.text("0123456789 :/x", min_size=8, max_size=8))
def test_other_columns_are_not_decimals(text: str) -> None:
    is_number = text.lstrip(" ").isdigit()
    assert (_decimals(np.frombuffer(text.encode(), "<u8")) is not None) == is_number


@pytest.mark.parametrize("last", ["VmFlags", "THPeligible"])
def test_stream_is_split_between_mappings(last: str) -> None:
    """The kernel returns about a page a call. Before Linux 3.8 no mapping ended with VmFlags."""
    both = "".join(one[: one.index("\n", one.index(last)) + 1] for one in (ONE, OTHER))
    count = 3 * BLOCK // len(both) if last == "VmFlags" else BLOCK // len(both) + 1
    stream = io.BytesIO((both * count).encode())
    found = read_smaps(lambda room: stream.readinto(room[:3500]))
    assert found.unparsed_lines == 0
    assert found.mappings == parse_smaps(both).mappings * count


pieces = st.lists(
    st.sampled_from([*ONE.splitlines(keepends=True), "Rss: x kB\n", "\n", "VmFlags:\n", "1-2"]), max_size=40
)


@given(pieces.map("".join))
def test_bulk_and_line_by_line_give_the_same(text: str) -> None:
    whole = ONE + text
    assert read_smaps(io.BytesIO(whole.encode()).readinto) == parse_smaps(whole)


@given(st.text())
def test_any_text_is_parsed_or_counted(text: str) -> None:
    parsed = parse_smaps(text)
    assert len(parsed.mappings) + parsed.unparsed_lines <= len(text.splitlines())
    parse_rollup(text)
    tmpfs_devices(text)


def test_smaps_rollup() -> None:
    parsed = parse_smaps("5646-7ffd ---p 00000000 00:00 0   [rollup]\nRss:  1600 kB\nSwap:  0 kB\n")
    (sums,) = parsed.mappings
    assert (sums.path, sums.rss, sums.swap, sums.anonymous) == ("[rollup]", 1600 * KIB, 0, None)
    assert parsed.unparsed_lines == 0


def test_rollup_needs_the_three_rss_fields() -> None:
    text = "RssAnon:\t      12 kB\nRssFile:\t       8 kB\nRssShmem:\t       4 kB\nVmLck:\t       0 kB\n"
    rollup = parse_rollup(text)
    assert rollup is not None
    assert (rollup.rss_anon, rollup.rss_file, rollup.rss_shmem, rollup.locked) == (12 * KIB, 8 * KIB, 4 * KIB, 0)
    assert rollup.swap is None
    assert parse_rollup("Name:\tkthreadd\n") is None


def test_tmpfs_devices_as_maps_spells_them() -> None:
    mountinfo = (
        "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n"
        "24 30 0:26 / /dev/shm rw,nosuid,nodev shared:4 - tmpfs tmpfs rw\n"
    )
    assert tmpfs_devices(mountinfo) == {"00:1a"}
