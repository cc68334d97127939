"""Demangling of C++ and Rust names."""

import functools
import re
from collections.abc import Callable

from memforensics.symbols.names.rust import demangle_v0

_MAX_MANGLED = 4096
_RUST_HASH = re.compile(r"h[0-9a-f]{16}")
_RUST_ESCAPE = re.compile(r"\$(SP|BP|RF|LT|GT|LP|RP|C|u[0-9a-f]{1,6})\$|\.\.")
_RUST_ESCAPES = {"SP": "@", "BP": "*", "RF": "&", "LT": "<", "GT": ">", "LP": "(", "RP": ")", "C": ","}


@functools.lru_cache(maxsize=65536)
def demangle(name: str) -> str:
    """Demangles C++ (Itanium) and Rust (legacy, v0) names and removes the Rust hash. Other names stay unchanged."""
    if len(name) > _MAX_MANGLED:
        return name
    if name.startswith("_R"):
        return demangle_v0(name) or name
    if not name.startswith("_Z"):
        return name
    return _rust_legacy(name) or _cplusplus()(name)


def _rust_legacy(name: str) -> str | None:
    """_ZN <length><identifier>... 17h<hash> E, and a suffix of the compiler (`.llvm.123`), which is dropped.
    rust-lang/rust, compiler/rustc_symbol_mangling/src/legacy.rs. None: the name is not of this form."""
    if not name.startswith("_ZN"):
        return None
    parts: list[str] = []
    at = 3
    while found := re.compile(r"\d{1,4}").match(name, at):
        end = found.end() + int(found[0])
        if end >= len(name):
            return None
        parts.append(name[found.end() : end])
        at = end
    if name[at : at + 1] != "E" or len(parts) < 2 or not _RUST_HASH.fullmatch(parts[-1]):
        return None
    return "::".join(_unescape(part) for part in parts[:-1])


def _unescape(part: str) -> str:
    def character(found: "re.Match[str]") -> str:
        code = found[1]
        if code is None:
            return "::"
        if code not in _RUST_ESCAPES:
            point = int(code[1:], 16)
            return chr(point) if point < 0x110000 and not 0xD800 <= point < 0xE000 else found[0]
        return _RUST_ESCAPES[code]

    return _RUST_ESCAPE.sub(character, part.removeprefix("_") if part.startswith("_$") else part)


@functools.cache
def _cplusplus() -> Callable[[str], str]:
    """The demangler of the C++ run-time library. Without it, names stay mangled."""
    try:
        import cxxfilt
    except Exception:  # noqa: BLE001  its LibraryNotFound cannot be named when the import failed
        return lambda name: name

    def readable(name: str) -> str:
        try:
            return str(cxxfilt.demangle(name))
        except (cxxfilt.Error, UnicodeError, OSError):
            return name

    return readable
