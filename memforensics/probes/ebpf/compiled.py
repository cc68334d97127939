"""eBPF programs as bytes: compiled by bcc's clang, which takes a second of a CPU, and kept for the next time.

They are kept below $XDG_CACHE_HOME, in a folder of our own that nobody else may write to, under a hash of all that they
were made from. Whatever is not as it should be there (another owner, a damaged file) is not used, and not reported.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from memforensics.probes.ebpf.objects import MapSpec

FORMAT = 1
KEPT = 32  # files: the oldest go
_LOAD_IMM64, _PSEUDO_MAP_FD = 0x18, 1  # an instruction that names a map (include/uapi/linux/bpf.h)


@dataclass(frozen=True, slots=True)
class Compiled:
    """Functions of one source. Instructions that name a map have its index in `maps` in place of a descriptor."""

    maps: tuple[MapSpec, ...]
    functions: dict[str, bytes]


def linked(code: bytes, number_of: dict[int, int]) -> bytes:
    """Code whose instructions name maps by other numbers: indices for descriptors, or descriptors for indices.
    KeyError where one is not among them."""
    out = bytearray(code)
    for at in range(0, len(out), 8):
        if out[at] == _LOAD_IMM64 and out[at + 1] >> 4 == _PSEUDO_MAP_FD:
            number = int.from_bytes(out[at + 4 : at + 8], "little")
            out[at + 4 : at + 8] = number_of[number].to_bytes(4, "little")
    return bytes(out)


def compiled(bcc: Any, text: bytes, flags: Sequence[str]) -> Compiled:
    """From the cache, or by clang. Exceptions of bcc's as they are."""
    key = _key(bcc, text, flags)
    found = _kept(key)
    if found is None:
        found = _compile(bcc, text, flags)
        with contextlib.suppress(OSError):
            _keep(key, found)
    return found


def _compile(bcc: Any, text: bytes, flags: Sequence[str]) -> Compiled:
    made = bcc.BPF(text=text, cflags=list(flags))
    try:
        lib, module = bcc.libbcc.lib, ctypes.c_void_p(made.module)
        lib.bpf_table_name.restype = ctypes.c_char_p
        descriptors: dict[int, int] = {}
        maps: list[MapSpec] = []
        for index in range(lib.bpf_num_tables(module)):
            descriptor = int(lib.bpf_table_fd_id(module, ctypes.c_size_t(index)))
            name = lib.bpf_table_name(module, ctypes.c_size_t(index)).decode()
            descriptors[descriptor] = len(maps)
            maps.append(_spec(name, descriptor))
        functions = {}
        for index in range(lib.bpf_num_functions(module)):
            name = lib.bpf_function_name(module, index)
            code = ctypes.string_at(lib.bpf_function_start(module, name), lib.bpf_function_size(module, name))
            functions[name.decode()] = linked(code, descriptors)
        return Compiled(tuple(maps), functions)
    finally:
        made.cleanup()


def _spec(name: str, descriptor: int) -> MapSpec:
    """What bcc created a map from, as the kernel tells it."""
    said = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    fields = {key: int(value, 0) for key, value in re.findall(r"^(m\w+|\w+_size):\s*(0x[\da-f]+|\d+)$", said, re.M)}
    return MapSpec(
        name,
        fields["map_type"],
        fields["key_size"],
        fields["value_size"],
        fields["max_entries"],
        fields.get("map_flags", 0),
    )


# --- the cache --------------------------------------------------------------------------------------------------------


def _key(bcc: Any, text: bytes, flags: Sequence[str]) -> str:
    """Of the text, which has our headers in it, and of all else that the code may depend on."""
    parts = [str(FORMAT), *flags, str(getattr(bcc, "__version__", "")), platform.release(), platform.machine()]
    folder = Path(__file__).parent / "include"
    hashed = hashlib.sha256("\0".join(parts).encode())
    for piece in (text, *(path.read_bytes() for path in sorted(folder.rglob("*.h")))):
        hashed.update(hashlib.sha256(piece).digest())
    return hashed.hexdigest()


def _folder() -> Path | None:
    """Ours alone, made when it is not there. None where there can be none."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(home):
        return None
    folder = Path(home) / "memforensics" / "ebpf"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.lstat()
    except OSError:
        return None
    return folder if stat.S_ISDIR(about.st_mode) and _is_ours(about) else None


def _is_ours(about: os.stat_result) -> bool:
    return about.st_uid == os.geteuid() and not about.st_mode & 0o022


def _kept(key: str) -> Compiled | None:
    folder = _folder()
    if folder is None:
        return None
    try:
        with open(os.open(folder / key, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            if not _is_ours(os.fstat(file.fileno())):
                return None
            digest, data = file.read(32), file.read()
        if hashlib.sha256(data).digest() != digest:
            return None
        return msgspec.msgpack.decode(data, type=Compiled)
    except (OSError, msgspec.DecodeError):
        return None


def _keep(key: str, made: Compiled) -> None:
    folder = _folder()
    if folder is None:
        return
    data = msgspec.msgpack.encode(made)
    descriptor, name = tempfile.mkstemp(dir=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
        os.rename(name, folder / key)
    except OSError:
        os.unlink(name)
        raise
    oldest = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_mtime)
    for path in oldest[:-KEPT]:
        path.unlink(missing_ok=True)
