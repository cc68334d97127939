"""Offsets of fields in CPython's structures, in bytes, for default x86-64 builds.

`offsets.json` is generated from the headers of each version by scripts/gen_cpython_offsets.py. From 3.13 on the target
contains its own offsets (struct _Py_DebugOffsets, Include/internal/pycore_runtime.h, at the start of _PyRuntime), which
take precedence. 3.14 is read by them alone; it was written from the sources and not tested on a 3.14 interpreter.
"""

import json
import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

from memforensics.errors import MemforensicsError
from memforensics.target.memory import Memory

COOKIE = b"xdebugpy"
MAX_OFFSET = 1 << 20  # _PyRuntime itself has 460 KB in 3.12
MAX_FRAME_BYTES = 128  # PY_RAW_BYTES of pyframes.bpf.h
COMPACT_AFTER_ASCII = 16  # utf8_length and utf8: PyCompactUnicodeObject, Include/cpython/unicodeobject.h

# Fields of 3.14's struct _Py_DebugOffsets (Include/internal/pycore_debug_offsets.h), which has threads_main,
# stackpointer and set_object in addition to 3.13's.
DEBUG_3_14 = {
    "version": 8,
    "free_threaded": 16,
    "interpreters_head": 40,
    "interpreter_id": 56,
    "interpreter_next": 64,
    "threads_head": 72,
    "thread_next": 176,
    "thread_frame": 192,
    "thread_ident": 200,
    "native_thread_id": 208,
    "frame_previous": 240,
    "frame_code": 248,
    "frame_instruction": 256,
    "frame_mark": 272,
    "code_filename": 296,
    "code_qualname": 312,
    "code_linetable": 320,
    "code_firstlineno": 328,
    "code_start": 360,
    "object_type": 376,
    "bytes_size": 568,
    "bytes_data": 576,
    "unicode_state": 592,
    "unicode_length": 600,
    "ascii_data": 608,
}
KIND_SHIFT_3_14 = 16  # `interned` is a uint16_t before it


class UnsupportedPython(MemforensicsError):
    """A CPython that cannot be read: too old, too new, or free-threaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offsets:
    """The offsets of one minor version. None: the version has no such field."""

    version: tuple[int, int]
    interpreters_head: int  # in _PyRuntime
    interpreter_next: int  # in PyInterpreterState, like the next two
    interpreter_id: int
    threads_head: int
    thread_next: int  # in PyThreadState
    thread_ident: int  # a pthread_t
    thread_frame: int  # frame, current_frame, or cframe
    frame_previous: int  # in PyFrameObject (to 3.10) or _PyInterpreterFrame
    frame_code: int
    frame_instruction: int
    code_filename: int  # in PyCodeObject
    code_qualname: int  # co_name to 3.10
    code_firstlineno: int
    code_linetable: int
    object_type: int
    bytes_size: int
    bytes_data: int
    unicode_length: int  # in PyASCIIObject
    unicode_state: int
    unicode_kind_shift: int  # bits; `compact` and `ascii` follow the three bits of `kind`
    ascii_data: int
    compact_data: int
    runtime_size: int
    native_thread_id: int | None = None
    cframe_frame: int | None = None
    frame_mark: int | None = None  # is_entry (3.11), owner (3.12 and later)
    code_start: int | None = None  # co_code_adaptive


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = json.loads(files(__package__).joinpath("offsets.json").read_text())
    return loaded


def known_versions() -> tuple[tuple[int, int], ...]:
    return tuple((3, int(version.partition(".")[2])) for version in _table())


@lru_cache(maxsize=16)
def offsets_for(version: tuple[int, int]) -> Offsets:
    """Offsets from the generated table. Raises UnsupportedPython if the version is not in it (3.14: debug_offsets)."""
    entry = _table().get(f"{version[0]}.{version[1]}")
    if entry is None:
        newest = max(known_versions())
        raise UnsupportedPython(
            f"CPython {version[0]}.{version[1]} is not supported",
            why=f"supported are 3.8 to {newest[0]}.{newest[1]}, and 3.14 by its own debug offsets",
        )
    return Offsets(version=version, **{name: value for name, value in entry.items() if name != "debug_offsets"})


def debug_offsets(memory: Memory, runtime: int, version: tuple[int, int]) -> Offsets:
    """Offsets in the target itself, from 3.13. Raises UnsupportedPython if they are missing or implausible."""
    is_3_14 = version == (3, 14)
    base = None if is_3_14 else offsets_for(version)
    places: dict[str, int] = DEBUG_3_14 if is_3_14 else _table()[f"{version[0]}.{version[1]}"]["debug_offsets"]
    raw = memory.read(runtime, max(places.values()) + 8)
    if raw[:8] != COOKIE:
        raise UnsupportedPython("this CPython has no debug offsets at the start of _PyRuntime")
    fields = {name: int(struct.unpack_from("<Q", raw, place)[0]) for name, place in places.items()}
    if fields.pop("free_threaded"):
        raise UnsupportedPython("free-threaded CPython is not supported", why="its objects have another layout")
    hexversion = fields.pop("version")
    if (hexversion >> 24, hexversion >> 16 & 0xFF) != version:
        raise UnsupportedPython(f"this CPython's debug offsets are for version {hexversion:#x}")
    if not _plausible(fields):
        raise UnsupportedPython("this CPython's debug offsets are implausible")
    known: dict[str, Any] = dict(fields)
    if base is not None:
        return replace(base, **known)
    known |= {"unicode_kind_shift": KIND_SHIFT_3_14, "compact_data": fields["ascii_data"] + COMPACT_AFTER_ASCII}
    return Offsets(version=version, runtime_size=0, **known)


def _plausible(fields: dict[str, int]) -> bool:
    """Whether these can be offsets: within bounds, each field at its own place after the object's head."""
    code = [value for name, value in fields.items() if name.startswith("code_")]
    frame = [value for name, value in fields.items() if name.startswith("frame_")]
    return (
        all(value <= MAX_OFFSET for value in fields.values())
        and len(set(code)) == len(code)
        and all(16 <= value <= 1024 for value in code)
        and len(set(frame)) == len(frame)
        and all(value < MAX_FRAME_BYTES - 8 for value in frame)
        and fields["object_type"] == 8
        and 40 <= fields["ascii_data"] <= 64
        and fields.get("bytes_size", 16) < fields.get("bytes_data", 32) <= 64
    )
