"""The version of a mapped library as the file itself states it, never as a package manager does.

`pip show` and `dpkg` may describe another file than the mapped one: wheels bundle renamed copies, and two can coexist.
These sources are tried in this order; each answer names its source:

1. a function that only returns a string: `ucp_get_version_string`, `zlibVersion`;
2. functions that only return or store constants: `ucp_get_version`, `*_major_version`;
3. a character array: `FooVersion[] = "1.2.3"`;
4. text in the read-only data: glibc's banner, "OpenSSL 3.0.17"; for GCC's run-time libraries their .comment;
5. (`SpaceVersions`) another library of the same build: libucs and libucm do not state their version, libucp does.
"""

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

import capstone
from capstone import x86

from memforensics.symbols.address_space import AddressSpace, MappedModule
from memforensics.symbols.elf.reader import BadElf, ElfFile

Version = tuple[str, str]  # (version, its source)

_MAX_NAMES_BYTES = 16 * 1024 * 1024
_MAX_RODATA_BYTES = 32 * 1024 * 1024
_MAX_NODES_BYTES = 1024 * 1024
_MAX_CANDIDATES = 64
_MAX_FUNCTION_BYTES = 48
_MAX_STRING = 120
_X86_64 = 62

_NUMBER = r"\d{1,5}(?:\.\d{1,5}){1,3}(?:[-.+~]?(?:rc|alpha|beta|a|b|post|dev|git|pre|p)\.?-?\d*)?"
_FULL_NUMBER = rb"\d{1,5}\.\d{1,5}\.\d{1,5}[a-z]?"  # "SSL 3.0" is a protocol, "OpenSSL 3.0.19" a release
_VERSION = re.compile(rf"(?<![\w.]){_NUMBER}(?![\w]*\.\d)|(?<![A-Za-z])v({_NUMBER})")
_VERSION_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_]{0,60}[Vv](?:ersion|ERSION)[A-Za-z0-9_]{0,20}|[A-Z0-9_]+_VERSION")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_WHEEL_HASH = re.compile(r"-[0-9a-f]{8}$")

# Words of a symbol's name that do not name a library.
_GENERIC_WORDS = frozenset({"version", "string", "str", "get", "lib", "library", "release", "full", "text", "info"})

# Products whose libraries contain the product's banner, not the library's name.
_BANNERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"GNU C Library \([^)\0]*\)[^\0]{0,40}release version (\d+\.\d+(?:\.\d+)?)"), "glibc's banner"),
    (re.compile(rb"ld\.so \([^)\0]*\)[^\0]{0,40}release version (\d+\.\d+(?:\.\d+)?)"), "ld.so's banner"),
    (re.compile(rb"\0OpenSSL (\d+\.\d+\.\d+[a-z]{0,2}) [^\0]{0,24}\0"), "OpenSSL's banner"),
    (re.compile(rb"\0(\d+\.\d+\.\d+)-\d+-g[0-9a-f]{40}\0"), "jemalloc's version string"),
    (re.compile(rb"\0gperftools (\d+\.\d+(?:\.\d+)?)\0"), "gperftools' version string"),
)
# GCC's run-time libraries: their version is that of the compiler that built them (.comment).
_GCC_RUNTIME = frozenset(
    {"stdc++", "gcc_s", "gomp", "atomic", "gfortran", "quadmath", "itm", "ssp", "asan", "tsan", "ubsan", "lsan"}
)
_GCC_COMMENT = re.compile(rb"GCC: \([^)\0]*\) (\d+\.\d+\.\d+)")


def library_version(elf: ElfFile, name: str) -> Version | None:
    """The library's version, from this file alone. `name`: its file name."""
    stem = stem_of(name)
    try:
        return (
            _by_code_or_data(elf, stem)
            or _by_banner(elf, stem)
            or (_by_compiler(elf) if stem in _GCC_RUNTIME else None)
        )
    except BadElf:
        return None


def stem_of(name: str) -> str:
    """libucs-97f10f8d.so.0.0.0 -> ucs; libstdc++.so.6 -> stdc++; libglib-2.0.so.0 -> glib; python3.11 -> python."""
    base = name.rpartition("/")[2].partition(".so")[0]
    base = _WHEEL_HASH.sub("", base).removeprefix("lib")
    return re.sub(r"-?\d+(\.\d+)*$", "", base) or base


# --- code and data -----------------------------------------------------------------------------------------------


def _by_code_or_data(elf: ElfFile, stem: str) -> Version | None:
    names = _ranked(_version_names(elf), stem)
    found = elf.find_symbols(names)
    text: Version | None = None
    numbers: dict[str, int] = {}
    for name in names:
        symbol = found.get(name)
        if symbol is None or not elf.defines(name):
            continue
        if not _in_code(elf, symbol.start):
            text = text or _array(elf, name, symbol.start, symbol.size)
            continue
        returned = _returned(elf, symbol.start)
        if isinstance(returned, str) and (version := version_in(returned)) is not None:
            return version, name
        if isinstance(returned, tuple):
            text = text or (".".join(map(str, returned)), name)
        if isinstance(returned, int):
            numbers[name] = returned
    return text or _by_parts(numbers)


def version_in(text: str) -> str | None:
    """The first version number in a text: 1.19.0 in "UCX library 1.19.0". It has at least two parts."""
    found = _VERSION.search(text)
    return (found[1] or found[0].removeprefix("v")) if found else None


def _version_names(elf: ElfFile) -> list[str]:
    """Names of .dynstr with *version* in them."""
    section = elf.section(".dynstr")
    if section is None or not 0 < section.size <= _MAX_NAMES_BYTES:
        return []
    names = elf.read_at(section.offset, section.size)
    return [m[0].decode() for m in re.finditer(rb"(?<=\0)(?:" + _VERSION_NAME.pattern + rb")(?=\0)", names)]


def _ranked(names: Iterable[str], stem: str) -> list[str]:
    """The names about the library itself, the simplest first: `archive_version_string` of libarchive, but not its
    `archive_zlib_version`."""
    ranks = {}
    for name in names:
        rest = [w for w in (word.lower() for word in _WORDS.findall(name)) if not _is_generic(w, stem.lower())]
        if not set(rest) - _PARTS:
            ranks[name] = (len(rest), "string" not in name.lower(), len(name), name)
    return sorted(ranks, key=ranks.__getitem__)[:_MAX_CANDIDATES]


_PARTS = frozenset(["major", "minor", "micro", "patch", "maintenance", "number"])


def _is_generic(word: str, stem: str) -> bool:
    """Whether a word of a symbol's name adds nothing to the library's name (zlib in libz, bz in libbz2)."""
    if word in _GENERIC_WORDS or word.isdigit():
        return True
    core = word.removeprefix("lib").removesuffix("lib")
    return (
        bool(core) and (stem.startswith(core) or core.startswith(re.sub(r"[\d._+-]+$", "", stem) or stem))
    ) or not core


def _in_code(elf: ElfFile, vaddr: int) -> bool:
    return any(s.executable and 0 <= vaddr - s.vaddr < s.filesz for s in elf.load_segments)


def _array(elf: ElfFile, name: str, vaddr: int, size: int) -> Version | None:
    """The version in a character array."""
    if not 3 <= size <= _MAX_STRING or size == 8:  # 8: a pointer, relocated at run time
        return None
    try:
        text = _printable(elf.read_at_vaddr(vaddr, size))
    except BadElf:
        return None
    version = version_in(text) if text else None
    return (version, name) if version else None


def _returned(elf: ElfFile, vaddr: int) -> str | int | tuple[int, ...] | None:
    """The string or number that a function returns, or the numbers that it stores through its first arguments. None if
    the function does anything else."""
    if elf.machine != _X86_64:
        return None
    try:
        code = elf.read_at_vaddr(vaddr, _MAX_FUNCTION_BYTES)
    except BadElf:
        return None
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    engine.detail = True
    result: int | None = None
    is_address = False
    stored: dict[int, int] = {}
    for instruction in engine.disasm(code, vaddr):
        kind, operands = instruction.id, instruction.operands
        if kind in (x86.X86_INS_ENDBR64, x86.X86_INS_NOP):
            continue
        if kind == x86.X86_INS_RET:
            if stored and result is None:
                return tuple(stored[r] for r in _ARGUMENTS[: len(stored)]) if _in_order(stored) else None
            if result is None:
                return None
            return _string_at(elf, result) if is_address else result
        if kind == x86.X86_INS_LEA and operands[0].reg == x86.X86_REG_RAX:
            source = operands[1].mem
            if source.base != x86.X86_REG_RIP or source.index:
                return None
            result, is_address = instruction.address + instruction.size + source.disp, True
        elif kind == x86.X86_INS_MOV and operands[1].type == x86.X86_OP_IMM:
            target, value = operands[0], operands[1].imm & 0xFFFFFFFF
            if target.type == x86.X86_OP_REG and target.reg in (x86.X86_REG_EAX, x86.X86_REG_RAX):
                result, is_address = value, False
            elif target.type == x86.X86_OP_MEM and target.mem.base in _ARGUMENTS and not target.mem.disp:
                stored[target.mem.base] = value
            else:
                return None
        else:
            return None
    return None


_ARGUMENTS = (x86.X86_REG_RDI, x86.X86_REG_RSI, x86.X86_REG_RDX, x86.X86_REG_RCX)


def _in_order(stored: dict[int, int]) -> bool:
    return (
        2 <= len(stored) <= 4 and all(r in stored for r in _ARGUMENTS[: len(stored)]) and max(stored.values()) < 10000
    )


def _string_at(elf: ElfFile, vaddr: int) -> str | None:
    for size in (_MAX_STRING, 16):
        try:
            return _printable(elf.read_at_vaddr(vaddr, size))
        except BadElf:
            continue
    return None


def _printable(data: bytes) -> str | None:
    """The string up to the NUL; None if there is no NUL or not only printable text before it."""
    text, nul, _ = data.partition(b"\0")
    return text.decode() if nul and text and all(32 <= byte < 127 for byte in text) else None


def _by_parts(numbers: dict[str, int]) -> Version | None:
    """Combines functions such as atk_get_major_version, atk_get_minor_version and atk_get_micro_version."""
    parts: dict[str, tuple[str, int]] = {}
    for name, value in numbers.items():
        for part in _PARTS & {word.lower() for word in _WORDS.findall(name)}:
            parts.setdefault("micro" if part in ("patch", "maintenance") else part, (name, value))
    if "major" not in parts or "minor" not in parts:
        return None
    values = [str(parts[part][1]) for part in ("major", "minor", "micro") if part in parts]
    return ".".join(values), f"{parts['major'][0]} and related functions"


# --- text in the read-only data ----------------------------------------------------------------------------------


def _by_banner(elf: ElfFile, stem: str) -> Version | None:
    section = elf.section(".rodata")
    if section is None or not 0 < section.size <= _MAX_RODATA_BYTES:
        return None
    data = b"\0" + elf.read_at(section.offset, section.size)
    for pattern, how in _BANNERS:
        found = pattern.search(data)
        if found is not None:
            return found[1].decode(), how
    own = re.compile(
        rb"\0(?i:lib)?(?i:" + re.escape(stem.encode()) + rb")(?:[ _-](?i:version))?[ :/_-]v?(" + _FULL_NUMBER + rb")\b"
    )
    found = own.search(data) if len(stem) >= 3 else None
    return (found[1].decode(), f"the words {_text_of(found[0])!r} in its data") if found else None


def _text_of(words: bytes) -> str:
    return words.strip(b"\0").decode("ascii", "replace")


def _by_compiler(elf: ElfFile) -> Version | None:
    comment = _comment(elf)
    found = _GCC_COMMENT.findall(comment) if comment else []
    if found:
        return found[-1].decode(), "its .comment, which names the GCC that built it"
    numbers = [n[8:] for n in version_nodes(elf) if re.fullmatch(r"GLIBCXX_\d+(\.\d+)+", n)]
    newest = max(numbers, key=lambda n: tuple(map(int, n.split("."))), default=None)
    return (newest, f"its newest symbol version, GLIBCXX_{newest}") if newest is not None else None


def version_nodes(elf: ElfFile) -> frozenset[str]:
    """The symbol versions that the file defines (.gnu.version_d): GLIBC_2.36, OPENSSL_3.0.0, ..."""
    section, names = elf.section(".gnu.version_d"), elf.section(".dynstr")
    if section is None or names is None or section.size > _MAX_NODES_BYTES or names.size > _MAX_NAMES_BYTES:
        return frozenset()
    out: set[str] = set()
    try:
        data, strings = elf.read_at(section.offset, section.size), elf.read_at(names.offset, names.size)
        position = 0
        while True:  # Elf64_Verdef and the first of its Elf64_Verdaux, which is the node's own name
            _, flags, _, _, _, aux, step = struct.unpack_from("<HHHHIII", data, position)
            (name,) = struct.unpack_from("<I", data, position + aux)
            if not flags & 1:  # VER_FLG_BASE: the file's own name
                out.add(strings[name : strings.index(b"\0", name)].decode("ascii", "replace"))
            if not step:
                break
            position += step
    except (BadElf, struct.error, ValueError):
        pass
    return frozenset(out)


def _comment(elf: ElfFile) -> bytes | None:
    section = elf.section(".comment")
    if section is None or not 0 < section.size < 65536:
        return None
    try:
        return elf.read_at(section.offset, section.size)
    except BadElf:
        return None


# --- other libraries of the same build ---------------------------------------------------------------------------


@dataclass(slots=True)
class SpaceVersions:
    """Versions of the modules of one address space. If a library does not state its version, that of another library
    of the same build is used."""

    space: AddressSpace
    _own: dict[int, Version | None] = field(default_factory=dict)
    _family: dict[int, Version | None] = field(default_factory=dict)

    def of(self, module: MappedModule) -> Version | None:
        """The version; None if neither the file nor a related library states it."""
        own = self.own(module)
        if own is not None:
            return own
        if module.start not in self._family:
            self._family[module.start] = self._by_sibling(module)
        return self._family[module.start]

    def own(self, module: MappedModule) -> Version | None:
        if module.start not in self._own:
            elf = self.space.elf(module)
            self._own[module.start] = library_version(elf, module.name) if elf is not None else None
        return self._own[module.start]

    def _by_sibling(self, module: MappedModule) -> Version | None:
        elf = self.space.elf(module)
        if elf is None:
            return None
        for other in self.space.modules:
            if other.start == module.start or not _same_folder(module, other):
                continue
            other_elf = self.space.elf(other)
            if other_elf is None:
                continue
            is_similar = _similar_names(module, other) and _same_build(elf, other_elf)
            if not (version_nodes(elf) & version_nodes(other_elf) or (is_similar and self._related(module, other))):
                continue
            version = self.own(other)
            if version is not None:
                return version[0], f"{version[1]} of {other.name}, from the same folder and the same build"
        return None

    def _related(self, module: MappedModule, other: MappedModule) -> bool:
        """Whether one needs the other (DT_NEEDED), directly or through libraries of the same family."""
        family = [m for m in self.space.modules if _same_folder(module, m) and _similar_names(module, m)]
        names: dict[str, MappedModule] = {}
        for member in family:
            for name in (member.name, self._soname(member)):
                if name:
                    names.setdefault(name, member)
        return self._reaches(other, module, names) or self._reaches(module, other, names)

    def _reaches(self, origin: MappedModule, goal: MappedModule, names: dict[str, MappedModule]) -> bool:
        seen = {origin.start}
        pending = [origin]
        while pending:
            current = pending.pop()
            if current.start == goal.start:
                return True
            elf = self.space.elf(current)
            try:
                needed = elf.needed if elf is not None else ()
            except BadElf:
                needed = ()
            for name in needed:
                found = names.get(name)
                if found is not None and found.start not in seen:
                    seen.add(found.start)
                    pending.append(found)
        return False

    def _soname(self, module: MappedModule) -> str | None:
        elf = self.space.elf(module)
        try:
            return elf.soname if elf is not None else None
        except BadElf:
            return None


def _same_folder(module: MappedModule, other: MappedModule) -> bool:
    """Whether `module` is in the folder of `other`, or in a plug-in folder below it."""
    folder, other_folder = module.path.rpartition("/")[0], other.path.rpartition("/")[0]
    return bool(other_folder) and (folder == other_folder or folder.startswith(other_folder + "/"))


def _similar_names(module: MappedModule, other: MappedModule) -> bool:
    stem, other_stem = stem_of(module.name), stem_of(other.name)
    return len(stem) > 2 < len(other_stem) and stem[:2] == other_stem[:2]


def _same_build(elf: ElfFile, other: ElfFile) -> bool:
    """Whether the sonames have the same version and one .comment has all compilers of the other."""
    try:
        majors = [(e.soname or "").partition(".so")[2] for e in (elf, other)]
    except BadElf:
        return False
    marks, other_marks = (frozenset((_comment(e) or b"").split(b"\0")) - {b""} for e in (elf, other))
    return majors[0] == majors[1] and (marks <= other_marks or other_marks <= marks)
