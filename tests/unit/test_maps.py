"""/proc/PID/maps."""

from hypothesis import given
from hypothesis import strategies as st

from memforensics.case.model import Mapping
from memforensics.target.maps import ParsedMaps, columns_of, parse_maps

# "+": a space that the kernel puts at the end
MAPS = """\
55b1270ea000-55b1270eb000 r-xp 00001000 fe:00 26723                      /usr/bin/a name
55b127100000-55b127200000 rw-p 00000000 00:00 0                          [heap]
7fd59c218000-7fd59c219000 r--p 00000000 00:00 0+
7fd59c219000-7fd59c21a000 rwxp 00000000 00:00 0+
7fd59c21a000-7fd59c21b000 rw-s 00000000 00:01 1024                       /dev/zero (deleted)
7fd59c21b000-7fd59c21c000 rw-p 00000000 00:00 0
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
""".replace("+", " ")


def test_each_form_of_line() -> None:
    parsed = parse_maps(MAPS)
    assert parsed.unparsed_lines == 0
    assert parsed.mappings[0] == Mapping(
        start=0x55B1270EA000,
        end=0x55B1270EB000,
        perms="r-xp",
        offset=0x1000,
        device="fe:00",
        inode=26723,
        path="/usr/bin/a name",
    )
    assert [(m.path, m.inode, m.device) for m in parsed.mappings[1:]] == [
        ("[heap]", 0, "00:00"),
        ("", 0, "00:00"),
        ("", 0, "00:00"),
        ("/dev/zero (deleted)", 1024, "00:01"),
        ("", 0, "00:00"),
        ("[vsyscall]", 0, "00:00"),
    ]
    assert parsed.mappings[-1].end == 0xFFFFFFFFFF601000


def test_named_or_code_skips_plain_anonymous_memory() -> None:
    whole = parse_maps(MAPS).mappings
    assert parse_maps(MAPS, named_or_code=True).mappings == tuple(m for m in whole if m.path or "x" in m.perms)


def test_path_with_line_separators() -> None:
    line = "7f00-7f01 r--p 00000000 fe:00 7                      /tmp/a\\012b\x0cc\u2028d\n"
    (mapping,) = parse_maps(line).mappings
    assert mapping.path == "/tmp/a\nb\x0cc\u2028d"
    assert parse_maps(line).unparsed_lines == 0


def test_unknown_lines_are_counted() -> None:
    assert parse_maps("\n" + MAPS + "7f00-7f01 rw-p 0000").unparsed_lines == 2
    assert parse_maps(MAPS[3:-9]).unparsed_lines == 0, "cut in a name or a number: a line still"
    assert parse_maps("") == ParsedMaps(())


lines = st.lists(st.sampled_from([*MAPS.splitlines(), "", "what", "7f00-7f01 rw-p 00000000 00:00 zero", "[heap]"]))


@given(lines)
def test_text_gives_the_mappings_of_its_lines(chosen: list[str]) -> None:
    parsed = [parse_maps(line + "\n") for line in chosen]
    together = parse_maps("".join(line + "\n" for line in chosen))
    assert together.mappings == tuple(m for one in parsed for m in one.mappings)
    assert together.unparsed_lines == sum(one.unparsed_lines for one in parsed)
    assert len(together.mappings) + together.unparsed_lines == len(chosen)


plain = st.builds(
    "{:012x}-{:012x} {}{}{}{} 00000000 00:00 0 ".format,
    st.integers(0, (1 << 47) - 1),
    st.integers(0, (1 << 47) - 1),
    *map(st.sampled_from, ("r-", "w-", "x-", "ps")),
)
odd = st.sampled_from([*MAPS.splitlines(), "", "[heap]", "7fd59c21800g-7fd59c219000 r--p 00000000 00:00 0 ",
                       "7fd59c218000-7fd59c219000 r-qp 00000000 00:00 0 "])  # fmt: skip


@given(st.lists(plain | odd, max_size=40), st.sampled_from(["", "\n"]))
def test_columns_and_line_by_line_give_the_same(chosen: list[str], end: str) -> None:
    text = "\n".join(chosen) + end
    columns, parsed = columns_of(text.encode()), parse_maps(text)
    assert columns.mappings() == parsed.mappings
    assert columns.unparsed_lines == parsed.unparsed_lines


@given(st.text())
def test_any_text_is_parsed_or_counted(text: str) -> None:
    parsed = parse_maps(text)
    assert len(parsed.mappings) + parsed.unparsed_lines <= len(text.splitlines())
    assert len(parse_maps(text, named_or_code=True).mappings) <= len(parsed.mappings)
