"""A trace for https://ui.perfetto.dev: memory over time, and a heap profile of the outstanding memory at the end.

Message and field numbers are those of protos/perfetto/trace/perfetto_trace.proto (Perfetto 0.59). Counter tracks show
the anonymous resident memory of each process and of its largest sites. From the ProfilePacket of a process the UI draws
the flame graph of memory that is not freed.
"""

from collections.abc import Iterable, Iterator

from memforensics.case.model import AllocationSite, Frame
from memforensics.report.export.profile import Profile, frame_name, frame_source, root_first, text
from memforensics.report.export.wire import block, number

SITES_OVER_TIME = 100  # counter tracks of a process, for the largest sites; the heap profile has all sites

_REALTIME, _MONOTONIC, _MONOTONIC_COARSE = 1, 3, 4  # BuiltinClock
_BYTES = 3  # CounterDescriptor.Unit.UNIT_SIZE_BYTES
_COUNTER = 4  # TrackEvent.Type.TYPE_COUNTER
_SEQUENCE = 1
_INCREMENTAL_STATE_CLEARED, _NEEDS_INCREMENTAL_STATE = 1, 2  # TracePacket.SequenceFlags


def perfetto(profile: Profile) -> bytes:
    """A perfetto.protos.Trace."""
    return b"".join(block(1, packet + number(10, _SEQUENCE)) for packet in _packets(profile))


def _packets(profile: Profile) -> Iterator[bytes]:
    yield _clocks(profile)
    pids = sorted({site.pid for site in profile.sites} | {s.pid for s in profile.samples} | profile.processes.keys())
    for uuid, pid in enumerate(pids, 1):
        process = number(1, pid) + block(6, text(profile.processes.get(pid, "process")))
        yield block(60, number(1, uuid) + block(3, process))
        yield from _counters(profile, pid, uuid, len(pids) + 1 + (uuid - 1) * (SITES_OVER_TIME + 1))
    yield from _heap(profile, pids)


def _clocks(profile: Profile) -> bytes:
    """Relates the clock of the case to the wall clock and makes it the clock of the trace. Perfetto reads the times of
    heap profiles on the coarse clock, which is the same clock with fewer ticks."""
    anchor = profile.anchor
    clocks = (
        (_MONOTONIC, anchor.monotonic_ns),
        (_MONOTONIC_COARSE, anchor.monotonic_ns),
        (_REALTIME, anchor.wall_ns),
    )
    shown = b"".join(block(1, number(1, clock) + number(2, t_ns)) for clock, t_ns in clocks)
    return block(6, shown + number(2, _MONOTONIC)) + _at(anchor.monotonic_ns)


def _at(t_ns: int) -> bytes:
    return number(8, t_ns) + number(58, _MONOTONIC)


def _counters(profile: Profile, pid: int, parent: int, first: int) -> Iterator[bytes]:
    samples = [(s.t_ns, s.rss_anon + s.rss_shmem) for s in profile.samples if s.pid == pid]
    if samples:
        yield from _counter(first, parent, "RSS without file pages", samples)
    mine = sorted((s for s in profile.sites if s.pid == pid), key=lambda s: (-s.outstanding_bytes, s.site_id))
    for track, site in enumerate(mine[:SITES_OVER_TIME], first + 1):
        points = [(point.t_ns, point.outstanding_bytes) for point in site.timeline]
        if not points or points[-1][0] < site.last_ns:
            points.append((max(site.last_ns, profile.began_ns), site.outstanding_bytes))
        yield from _counter(track, parent, f"{profile.labels.held}: {profile.site_name(site)} #{site.site_id}", points)


def _counter(track: int, parent: int, name: str, points: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    yield block(60, number(1, track) + number(5, parent) + block(2, name) + block(8, number(3, _BYTES)))
    for t_ns, value in points:
        yield _at(t_ns) + block(11, number(9, _COUNTER) + number(11, track) + number(30, value))


def _heap(profile: Profile, pids: Iterable[int]) -> Iterator[bytes]:
    interned = _Interned()
    dumps = []
    for pid in pids:
        samples = [
            block(2, _heap_sample(interned.callstack(site), site, profile.ended_ns))
            for site in profile.sites
            if site.pid == pid
        ]
        if samples:
            heap = block(11, f"memforensics: {profile.labels.profile}")
            dumps.append(block(5, number(1, pid) + number(9, profile.ended_ns) + heap + b"".join(samples)))
    if dumps:
        flags = number(13, _INCREMENTAL_STATE_CLEARED | _NEEDS_INCREMENTAL_STATE)
        yield _at(profile.ended_ns) + flags + block(12, interned.data()) + block(37, b"".join(dumps))


def _heap_sample(callstack: int, site: AllocationSite, t_ns: int) -> bytes:
    """The UI shows allocated minus freed, which is what is outstanding."""
    freed_bytes = site.allocated_bytes - site.outstanding_bytes
    freed_count = site.allocated_count - site.outstanding_count
    out = number(1, callstack) + number(2, site.allocated_bytes) + number(3, max(0, freed_bytes))
    return out + number(4, t_ns) + number(5, site.allocated_count) + number(6, max(0, freed_count))


class _Interned:
    """Gives strings, mappings, frames and callstacks numbers from 1. Each kind of string has its own numbers."""

    def __init__(self) -> None:
        self._strings: dict[int, dict[bytes, int]] = {5: {}, 16: {}, 17: {}, 18: {}}  # by the field of InternedData
        self._mappings: dict[tuple[int, ...], int] = {}
        self._frames: dict[tuple[int, ...], int] = {}
        self._callstacks: dict[tuple[int, ...], int] = {}

    def callstack(self, site: AllocationSite) -> int:
        frames = tuple(self._frame(frame) for frame in root_first(site))
        return self._callstacks.setdefault(frames, len(self._callstacks) + 1)

    def data(self) -> bytes:
        parts = [
            block(field, number(1, at) + block(2, value))
            for field, strings in self._strings.items()
            for value, at in strings.items()
        ]
        for (build_id, path), at in self._mappings.items():
            parts.append(block(19, number(1, at) + number(2, build_id) + number(7, path)))
        for (name, mapping, pc, source, line), at in self._frames.items():
            fields = number(1, at) + number(2, name) + number(3, mapping) + number(4, pc)
            fields += (number(5, source) if source else b"") + (number(6, line) if line else b"")
            parts.append(block(6, fields))
        for frames, at in self._callstacks.items():
            parts.append(block(7, number(1, at) + b"".join(number(2, frame) for frame in frames)))
        return b"".join(parts)

    def _frame(self, frame: Frame) -> int:
        module = text(frame.module) if frame.module else "python" if frame.kind == "python" else "unknown"
        build_id = bytes.fromhex(frame.build_id) if frame.build_id and _is_hex(frame.build_id) else b""
        mapping_key = (self._string(16, build_id), self._string(17, module.encode()))
        mapping = self._mappings.setdefault(mapping_key, len(self._mappings) + 1)
        source = frame_source(frame)
        key = (
            self._string(5, frame_name(frame).encode()),
            mapping,
            frame.offset or 0,
            self._string(18, source.encode()) if source else 0,
            frame.line or 0,
        )
        return self._frames.setdefault(key, len(self._frames) + 1)

    def _string(self, field: int, value: bytes) -> int:
        strings = self._strings[field]
        return strings.setdefault(value, len(strings) + 1)


def _is_hex(value: str) -> bool:
    return len(value) % 2 == 0 and all(c in "0123456789abcdef" for c in value.lower())
