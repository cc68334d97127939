"""A profile for pprof: profile.proto of https://github.com/google/pprof, gzipped.

The values have the names of a Go heap profile, so `-inuse_space` and similar options work: inuse_space is outstanding
memory, alloc_space all memory allocated during the trace. Native frames keep their address in the file, and files their
build-id, so frames without a name can be symbolized where the file is.
"""

import gzip
from collections.abc import Sequence

from memforensics.case.model import AllocationSite, Frame
from memforensics.report.export.profile import Profile, frame_name, frame_source, root_first, text
from memforensics.report.export.wire import block, number, numbers

_SAMPLE_TYPES = (
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
)


def pprof(profile: Profile) -> bytes:
    """profile.proto, gzipped; the same sites give the same bytes."""
    return gzip.compress(_Encoder(profile).message(), mtime=0)


class _Encoder:
    """Gives functions, mappings and locations numbers from 1, and strings numbers from 0."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._strings: dict[str, int] = {"": 0}
        self._functions: dict[tuple[str, str], int] = {}
        self._mappings: dict[tuple[str, str], int] = {}
        if profile.executable:  # pprof names a profile after its first mapping
            self._mapping(text(profile.executable), self._build_id(profile.executable))
        self._unnamed: set[int] = set()  # mappings with a location that has no function
        self._locations: dict[tuple[Frame, ...], int] = {}
        self._location_fields: list[bytes] = []

    def message(self) -> bytes:
        profile = self._profile
        samples = [self._sample(site) for site in profile.sites]
        out = [
            *(block(1, number(1, self._string(kind)) + number(2, self._string(unit))) for kind, unit in _SAMPLE_TYPES),
            *(block(2, sample) for sample in samples),
            *(block(3, self._mapping_fields(key, at)) for key, at in self._mappings.items()),
            *(block(4, fields) for fields in self._location_fields),
            *(block(5, self._function_fields(key, at)) for key, at in self._functions.items()),
            number(9, profile.anchor.wall_at(profile.began_ns)),
            number(10, profile.ended_ns - profile.began_ns),
            numbers(13, [self._string(text(note)) for note in (profile.title, *profile.notes)]),
            number(14, self._string("inuse_space")),
        ]
        return b"".join([*out, *(block(6, string) for string in self._strings)])

    def _sample(self, site: AllocationSite) -> bytes:
        values = (site.allocated_count, site.allocated_bytes, site.outstanding_count, site.outstanding_bytes)
        process = self._profile.process_name(site.pid)
        return b"".join(
            [
                numbers(1, [self._location(frames) for frames in _with_inlined(site)]),
                numbers(2, values),
                block(3, number(1, self._string("pid")) + number(3, site.pid)),
                *(self._label(key, value) for key, value in (("process", process), ("kind", site.kind))),
            ]
        )

    def _label(self, key: str, value: str) -> bytes:
        return block(3, number(1, self._string(key)) + number(2, self._string(value)))

    def _location(self, frames: tuple[Frame, ...]) -> int:
        """One place in the code: a frame, after the frames that are inlined into it."""
        known = self._locations.get(frames)
        if known is not None:
            return known
        at = self._locations[frames] = len(self._locations) + 1
        host = frames[-1]
        fields = [number(1, at)]
        mapping = self._mapping(text(host.module), host.build_id or "") if host.module else None
        if mapping is not None:
            fields.append(number(2, mapping))
        if host.offset is not None:
            fields.append(number(3, host.offset))
        named = [frame for frame in frames if frame.function or host.offset is None]
        fields += [block(4, number(1, self._function(frame)) + number(2, frame.line or 0)) for frame in named]
        if mapping is not None and not named:
            self._unnamed.add(mapping)
        self._location_fields.append(b"".join(fields))
        return at

    def _function(self, frame: Frame) -> int:
        source = frame_source(frame) or (text(frame.module) if frame.module else "")
        key = (frame_name(frame), source)
        return self._functions.setdefault(key, len(self._functions) + 1)

    def _function_fields(self, key: tuple[str, str], at: int) -> bytes:
        name, source = map(self._string, key)
        return number(1, at) + number(2, name) + number(3, name) + number(4, source)

    def _mapping(self, path: str, build_id: str) -> int:
        return self._mappings.setdefault((path, build_id), len(self._mappings) + 1)

    def _build_id(self, path: str) -> str:
        """The build-id that a frame of that file has."""
        frames = (frame for site in self._profile.sites for frame in site.stack.frames)
        return next((frame.build_id for frame in frames if frame.module == path and frame.build_id), "")

    def _mapping_fields(self, key: tuple[str, str], at: int) -> bytes:
        """Addresses are those in the file, so the mapping begins at 0. The flags tell pprof not to look for symbols."""
        path, build_id = map(self._string, key)
        complete = at not in self._unnamed
        return b"".join(
            [number(1, at), number(5, path), number(6, build_id), *(number(flag, complete) for flag in (7, 8, 9, 10))]
        )

    def _string(self, value: str) -> int:
        return self._strings.setdefault(value, len(self._strings))


def _with_inlined(site: AllocationSite) -> Sequence[tuple[Frame, ...]]:
    """Frames, leaf first; inlined frames are together with the frame that they are inlined into."""
    out: list[tuple[Frame, ...]] = []
    inlined: list[Frame] = []
    for frame in reversed(root_first(site)):
        inlined.append(frame)
        if not frame.inlined:
            out.append(tuple(inlined))
            inlined = []
    return [*out, tuple(inlined)] if inlined else out
