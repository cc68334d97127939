"""Exports, read back by something else than what wrote them. Real consumers: tests/live/test_export_consumers.py."""

import gzip
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from exported import HOSTILE, SITES, STRANGE, TOTAL, S, profile, site
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as messages

from memforensics.case.model import Frame
from memforensics.report.export import EXPORT_FORMATS, ExportFormat, export
from memforensics.report.export.wire import block, number, numbers

NAMES = st.text(st.characters()) | st.sampled_from([HOSTILE, "", ";", " 1", "-->", "<!--"])
FRAMES = st.builds(
    Frame,
    kind=st.sampled_from(["native", "python", "hook"]),
    function=st.none() | NAMES,
    module=st.none() | NAMES,
    build_id=st.none() | st.sampled_from(["ab12", "xyz", "abc"]),
    file=st.none() | NAMES,
    line=st.none() | st.integers(1, 1 << 20),
    offset=st.none() | st.integers(0, (1 << 64) - 1),
    inlined=st.booleans(),
)
STACKS = st.lists(st.tuples(st.lists(FRAMES, max_size=6), st.integers(0, 1 << 50)), max_size=5)


def sites_of(stacks: list[tuple[list[Frame], int]]) -> Any:
    return tuple(site(7, at, held, 1, *frames) for at, (frames, held) in enumerate(stacks, 1))


@pytest.mark.parametrize("form", EXPORT_FORMATS)
def test_export_is_deterministic_and_may_be_empty(form: ExportFormat) -> None:
    assert export(profile(), form) == export(profile(), form)
    assert export(profile(()), form) is not None


# --- folded -----------------------------------------------------------------------------------------------------------


def folded_lines(data: bytes) -> list[tuple[list[str], int]]:
    pairs = [line.rpartition(" ") for line in data.decode().splitlines()]
    return [(stack.split(";"), int(size)) for stack, _, size in pairs]


def test_folded_has_one_line_per_stack() -> None:
    lines = folded_lines(export(profile(), "folded"))
    assert [size for _, size in lines] == [7 << 20, 2 << 20, 1 << 20, 512 << 10]
    assert lines[0][0] == [
        "pid 41 (server)",
        "_start [server]",
        "main (main.py:3)",
        "Server.serve (service.py:101)",
        "pool_grow [libpool.so.1]",
        "tiny [libpool.so.1]",
    ]
    assert lines[3][0][2] == "+0x77 [libplain.so]"


@given(STACKS)
def test_folded_keeps_depth_and_sum_with_any_names(stacks: list[tuple[list[Frame], int]]) -> None:
    lines = folded_lines(export(profile(sites_of(stacks)), "folded"))
    assert sum(size for _, size in lines) == sum(held for _, held in stacks)
    assert {len(names) - 1 for names, _ in lines} == {len(frames) for frames, held in stacks if held}


# --- speedscope -------------------------------------------------------------------------------------------------------


def test_speedscope_has_a_profile_for_each_figure() -> None:
    told = json.loads(export(profile(), "speedscope"))
    frames, profiles = told["shared"]["frames"], told["profiles"]
    assert told["exporter"] == "memforensics@1.2.3"
    assert [(p["name"], p["unit"], p["endValue"]) for p in profiles] == [
        ("outstanding bytes", "bytes", TOTAL),
        ("resident bytes of outstanding memory", "bytes", TOTAL // 2),
        ("outstanding blocks", "none", 13),
        ("allocated bytes, freed or not", "bytes", TOTAL + 4096 + (1 << 20)),
        ("allocations, freed or not", "none", sum(site.allocated_count for site in profile().sites)),
    ]
    first = [frames[index] for index in profiles[0]["samples"][0]]
    assert [f["name"] for f in first][1:5] == ["_start [server]", "main", "Server.serve", "pool_grow [libpool.so.1]"]
    assert (first[3]["file"], first[3]["line"]) == ("/srv/app/service.py", 101)


@given(STACKS)
def test_speedscope_is_consistent_with_any_names(stacks: list[tuple[list[Frame], int]]) -> None:
    told = json.loads(export(profile(sites_of(stacks)), "speedscope"))
    for measured in told["profiles"]:
        assert sum(measured["weights"]) == measured["endValue"]
        assert all(0 <= index < len(told["shared"]["frames"]) for stack in measured["samples"] for index in stack)


# --- protobuf ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, (1 << 64) - 1), st.integers(-(1 << 63), (1 << 63) - 1), st.binary(), st.lists(st.integers(0, 9)))
def test_protobuf_runtime_reads_our_wire_format(large: int, signed: int, data: bytes, some: list[int]) -> None:
    read = messages.TracePacket.FromString(
        number(8, large) + block(11, number(30, signed) + numbers(3, some)) + block(12, block(5, block(2, data)))
    )
    assert (read.timestamp, read.track_event.counter_value) == (large, signed)
    assert list(read.track_event.category_iids) == some
    assert read.interned_data.function_names[0].str == data


def known_fields_only(message: Message) -> bool:
    """Written again from what the official messages know of it, it is as long as it was."""
    size = message.ByteSize()
    message.DiscardUnknownFields()
    return bool(message.ByteSize() == size)


def test_perfetto_trace_parses_as_official_messages() -> None:
    trace = messages.Trace.FromString(export(profile(), "perfetto"))
    assert known_fields_only(trace)
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")}
    assert len(tracks) == sum(p.HasField("track_descriptor") for p in trace.packet)
    assert {t.process.pid for t in tracks.values() if t.HasField("process")} == {41, 42}
    counted: dict[str, list[tuple[int, int]]] = {}
    for packet in trace.packet:
        if packet.HasField("track_event"):
            track = tracks[packet.track_event.track_uuid]
            assert tracks[track.parent_uuid].HasField("process")
            counted.setdefault(track.name, []).append((packet.timestamp, packet.track_event.counter_value))
    assert counted["RSS without file pages"] == [(10 * S, (10 << 20) + 4096), (20 * S, (20 << 20) + 4096)]
    grown = [(11 * S, 7 << 19), (13 * S, 7 << 20)]
    assert counted["outstanding: pool_grow (libpool.so.1) #1"] == grown
    (clocks,) = [p.clock_snapshot for p in trace.packet if p.HasField("clock_snapshot")]
    assert {c.clock_id: c.timestamp for c in clocks.clocks}[1] == 1_700_000_000 * S


def test_perfetto_has_a_heap_profile_for_each_process() -> None:
    trace = messages.Trace.FromString(export(profile(), "perfetto"))
    (packet,) = [p for p in trace.packet if p.HasField("profile_packet")]
    data = packet.interned_data
    names = {s.iid: s.str.decode() for s in data.function_names}
    frames = {f.iid: names[f.function_name_id] for f in data.frames}
    stacks = {c.iid: [frames[f] for f in c.frame_ids] for c in data.callstacks}
    held = {
        (dump.pid, stacks[s.callstack_id][-1]): s.self_allocated - s.self_freed
        for dump in packet.profile_packet.process_dumps
        for s in dump.samples
    }
    assert held[41, "tiny"] == 7 << 20
    assert held[42, "+0x77"] == 512 << 10
    assert sum(held.values()) == TOTAL
    mappings = {m.iid: m for m in data.mappings}
    paths = {s.iid: s.str for s in data.mapping_paths}
    assert all(f.mapping_id in mappings for f in data.frames)
    assert all(path in paths for m in mappings.values() for path in m.path_string_ids)


@given(STACKS)
def test_protobuf_exports_are_well_formed_with_any_names(stacks: list[tuple[list[Frame], int]]) -> None:
    trace = messages.Trace.FromString(export(profile(sites_of(stacks)), "perfetto"))
    assert known_fields_only(trace)
    assert gzip.decompress(export(profile(sites_of(stacks)), "pprof"))


# --- HTML -------------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text.setdefault(self._open[-1], []).append(data)


def test_page_requests_nothing() -> None:
    page = export(profile(), "html").decode()
    tags = Elements(page).tags
    assert not [tag for tag, _ in tags if tag in ("link", "img", "iframe", "object", "embed", "base", "form", "a")]
    assert not [attributes for _, attributes in tags if {"src", "href", "srcset", "style"} & attributes.keys()]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert "http://" not in page
    assert "https://" not in page
    (policy,) = [a["content"] or "" for t, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_page_table_needs_no_script() -> None:
    read = Elements(export(profile(), "html").decode())
    assert read.text["summary"][0] == "pool_grow (libpool.so.1)"
    assert "7.0 MiB" in read.text["td"]
    assert "Server.serve" in "".join(read.text["li"])
    assert read.text["h1"][0].startswith("memforensics trace-mmap a</script>")


@given(STACKS)
def test_page_shows_any_name_as_text(stacks: list[tuple[list[Frame], int]]) -> None:
    page = export(profile(sites_of(stacks)), "html").decode()
    read = Elements(page)
    assert [tag for tag, _ in read.tags].count("script") == 2
    data = json.loads(read.text["script"][0])
    own = data["measures"][0]["self"]
    assert sum(own) == sum(held for _, held in stacks)
    assert all(parent < at for at, parent in enumerate(data["parent"]))
    assert all(part.isprintable() for described in data["frames"] for part in described)


def test_page_escapes_hostile_names() -> None:
    page = export(profile(), "html").decode()
    assert STRANGE.function == HOSTILE
    assert "<img" not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", page)
    assert len(SITES) > page.count("<tr><td>") == 4
