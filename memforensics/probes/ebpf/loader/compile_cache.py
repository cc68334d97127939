"""eBPF programs as bytes: compiled by bcc's clang, which takes a CPU second, and cached.

The cache is a folder below $XDG_CACHE_HOME that nobody else may write to. The name of a file is a hash of all that the
programs depend on. A file or folder with another owner, other rights or damage is not used, and not reported.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import platform
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from memforensics.probes.ebpf.loader.objects import MapSpec

FORMAT = 1
MAX_FILES = 32  # the oldest ones are deleted
MAX_BYTES = 16 << 20  # of a file: ours have some 100 KiB
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LOAD_IMM64, _PSEUDO_MAP_FD = 0x18, 1  # an instruction that names a map (include/uapi/linux/bpf.h)


@dataclass(frozen=True, slots=True)
class Compiled:
    """Functions of one source. Instructions that name a map have its index in `maps` in place of a descriptor."""

    maps: tuple[MapSpec, ...]
    functions: dict[str, bytes]


def linked(code: bytes, number_of: dict[int, int]) -> bytes:
    """The code with other numbers for its maps: indices for descriptors, or descriptors for indices. KeyError: a map
    has no number."""
    out = bytearray(code)
    for at in range(0, len(out), 8):
        if out[at] == _LOAD_IMM64 and out[at + 1] >> 4 == _PSEUDO_MAP_FD:
            number = int.from_bytes(out[at + 4 : at + 8], "little")
            out[at + 4 : at + 8] = number_of[number].to_bytes(4, "little")
    return bytes(out)


def compiled(bcc: Any, text: bytes, flags: Sequence[str]) -> Compiled:
    """Reads the cache, or compiles. Raises the exceptions of bcc."""
    key = _key(bcc, text, flags)
    found = _read(key)
    if found is None:
        found = _compile(bcc, text, flags)
        with contextlib.suppress(OSError):
            _write(key, found)
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
    """The parameters with which bcc created a map, by the kernel."""
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
    """A hash of the text, which contains our headers, and of all else that the code may depend on."""
    parts = [str(FORMAT), *flags, str(getattr(bcc, "__version__", "")), platform.release(), platform.machine()]
    folder = Path(__file__).parent.parent / "bpf" / "include"
    hashed = hashlib.sha256("\0".join(parts).encode())
    for piece in (text, *(path.read_bytes() for path in sorted(folder.rglob("*.h")))):
        hashed.update(hashlib.sha256(piece).digest())
    return hashed.hexdigest()


@contextlib.contextmanager
def _folder() -> Iterator[int]:
    """A descriptor of our cache folder, which is created when it is missing. Each step opens a folder by the descriptor
    of the one before, follows no link, and checks the owner. So another user who owns a parent cannot replace it.
    OSError when there can be no such folder."""
    home = platformdirs.user_cache_dir()
    if not os.path.isabs(home):
        raise FileNotFoundError(home)
    parent, last = os.path.split(home.rstrip("/"))
    exists = os.path.isdir(home)
    folder = os.open(home if exists else parent, _DIRECTORY)
    try:
        _check(folder)
        for name in (*(() if exists else (last,)), "memforensics", "ebpf"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=folder)
            inner = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
            _check(folder)
        yield folder
    finally:
        os.close(folder)


def _check(descriptor: int) -> None:
    """PermissionError when another user can write it."""
    about = os.fstat(descriptor)
    if about.st_uid != os.geteuid() or about.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "another user can write there")


def _read(key: str) -> Compiled | None:
    try:
        with (
            _folder() as folder,
            open(os.open(key, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), "rb") as file,
        ):
            _check(file.fileno())
            digest, data = file.read(32), file.read(MAX_BYTES)
        if hashlib.sha256(data).digest() != digest:
            return None
        return msgspec.msgpack.decode(data, type=Compiled)
    except (OSError, msgspec.DecodeError):
        return None


def _write(key: str, made: Compiled) -> None:
    data = msgspec.msgpack.encode(made)
    with _folder() as folder:
        fresh = f".{secrets.token_hex(8)}"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            with open(descriptor, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
            os.rename(fresh, key, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.unlink(fresh, dir_fd=folder)
            raise
        _drop_oldest(folder)


def _drop_oldest(folder: int) -> None:
    """Keeps the newest MAX_FILES files."""
    about = {}
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            about[name] = os.stat(name, dir_fd=folder, follow_symlinks=False)
    files = [name for name, found in about.items() if stat.S_ISREG(found.st_mode)]
    for name in sorted(files, key=lambda name: about[name].st_mtime)[:-MAX_FILES]:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
