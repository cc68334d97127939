"""Versions that files state: of a library built for the test, and of this machine's libraries by another source."""

import ctypes
import ctypes.util
import os
import platform
import re
import ssl
import subprocess
import zlib
from pathlib import Path

import pytest
from processes import compiled

from memforensics.symbols.elf.reader import BadElf, ElfFile
from memforensics.symbols.elf.versions import library_version, stem_of, version_in, version_nodes


def mapped_path(part: str) -> Path:
    """The path of the file mapped in this process whose name begins with this."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if path.rpartition("/")[2].startswith(part):
            return Path(path)
    pytest.skip(f"no {part} is mapped here")


def version_of(path: Path, name: str | None = None) -> tuple[str, str] | None:
    with path.open("rb") as stream:
        return library_version(ElfFile(stream), name or path.name)


def test_libc_agrees_with_itself() -> None:
    found = version_of(mapped_path("libc.so"))
    assert found is not None
    assert found[0] == platform.libc_ver()[1]


def test_zlib_agrees_with_itself() -> None:
    found = version_of(mapped_path("libz.so"))
    assert found == (zlib.ZLIB_RUNTIME_VERSION, "zlibVersion")


def test_openssl_agrees_with_itself() -> None:
    assert ssl.OPENSSL_VERSION_INFO
    found = version_of(mapped_path("libcrypto.so"))
    assert found is not None
    assert found[0] == ssl.OPENSSL_VERSION.split()[1]


def test_a_protocol_version_is_not_taken_for_libssl_s_own() -> None:
    """libssl's data contains "SSL 3.0" and "TLS 1.2"; the release is in libcrypto only."""
    assert ssl.OPENSSL_VERSION_INFO
    found = version_of(mapped_path("libssl.so"))
    assert found is None or found[0] == ssl.OPENSSL_VERSION.split()[1]


def test_bz2_and_lzma_by_their_functions() -> None:
    for library, function in (("bz2", "BZ2_bzlibVersion"), ("lzma", "lzma_version_string")):
        name = ctypes.util.find_library(library)
        if name is None:
            continue
        loaded = ctypes.CDLL(name)
        getattr(loaded, function).restype = ctypes.c_char_p
        own = getattr(loaded, function)().decode()
        found = version_of(mapped_path(f"lib{library}"))
        assert found == (re.split(r"[, ]", own)[0], function)


def test_libstdcxx_by_its_newest_symbol_version() -> None:
    out = subprocess.run(["gcc", "-print-file-name=libstdc++.so.6"], capture_output=True, text=True, check=True)
    path = Path(out.stdout.strip()).resolve()
    found = version_of(path)
    assert found is not None
    numbers = [n.removeprefix("GLIBCXX_") for n in version_nodes(ElfFile(path.read_bytes())) if "GLIBCXX_3" in n]
    newest = max(numbers, key=lambda n: [int(part) for part in n.split(".")])
    assert found[0] == newest or "GCC" in found[1]


def test_every_strategy_on_a_library_made_for_it() -> None:
    """Each build of the source contains only one of its version texts."""
    for define, name, expected in (
        ("WORD_STRING", "libfoo.so.1", ("4.5.6", "foo_get_version_string")),
        ("WORD_STORED", "libfoo.so.1", ("7.8.9", "foo_get_version")),
        ("WORD_PARTS", "libfoo.so.1", ("3.2.1", "foo_major_version and related functions")),
        ("WORD_ARRAY", "libfoo.so.1", ("2.4.16", "foo_version")),
        ("WORD_BANNER", "libfoo.so.1", ("10.20.30", "the words 'foo 10.20.30' in its data")),
        ("WORD_OTHERS", "libfoo.so.1", None),
        ("WORD_NONE", "libfoo.so.1", None),
    ):
        library = compiled("hook_version_words.c", f"-D{define}", "-shared", "-fPIC", "-O2")
        assert version_of(library, name) == expected, define


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("libucs.so.0.0.0", "ucs"),
        ("libucs-97f10f8d.so.0.0.0", "ucs"),
        ("/usr/lib/libstdc++.so.6.0.30", "stdc++"),
        ("libglib-2.0.so.0", "glib"),
        ("libpython3.11.so.1.0", "python"),
        ("libz.so.1", "z"),
        ("ld-linux-x86-64.so.2", "ld-linux-x86"),
    ],
)
def test_stems(name: str, stem: str) -> None:
    assert stem_of(name) == stem


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.19.0", "1.19.0"),
        ("UCX library 1.19.0 (rev abc)", "1.19.0"),
        ("v2.7.1", "2.7.1"),
        ("1.0.8, 13-Jul-2019", "1.0.8"),
        ("2.1.0rc1", "2.1.0rc1"),
        ("build 17", None),
        ("10.0.0.1.5.6.7", None),
        ("", None),
    ],
)
def test_version_in(text: str, version: str | None) -> None:
    assert version_in(text) == version


def test_a_damaged_file_has_no_version() -> None:
    path = mapped_path("libz.so")
    data = path.read_bytes()
    for cut in (64, 1000, len(data) // 2):
        try:
            elf = ElfFile(data[:cut] + os.urandom(256))
        except BadElf:
            continue
        library_version(elf, path.name)
