"""All fuzzed readers: every reader of data that a target, or the author of a case file, can write.

To add a reader, add one entry: its name, real inputs to damage, and a function that reads one input as a probe does. It
may raise only what `allowed` says, and must end soon.
"""

import contextlib
import io
import json
import mmap
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from fixtures.constructed import case as constructed_case
from processes import compiled

from memforensics.case import model
from memforensics.case.store import CaseFile
from memforensics.errors import MemforensicsError
from memforensics.target.memory import BytesMemory, Unreadable
from memforensics.target.procfs import ProcFS


@dataclass(frozen=True, slots=True)
class Reader:
    name: str
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[bytes], object]
    tokens: tuple[bytes, ...] = ()
    allowed: tuple[type[BaseException], ...] = (MemforensicsError,)
    share: int = 10  # weight among the readers; slow ones have less
    damage: Callable[[Sequence[bytes], random.Random], bytes] | None = None  # instead of mutate.mutated


# --- /proc/PID --------------------------------------------------------------------------------------------------------

PID = 4242


@cache
def _scratch() -> Path:
    """A folder, in memory if possible. It is removed at exit."""
    place = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="memforensics-fuzz-", dir=place if os.access(place, os.W_OK) else None))
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _own_proc() -> dict[str, bytes]:
    """Files of /proc of this process."""
    names = ("stat", "status", "maps", "smaps", "smaps_rollup", "cgroup", "mountinfo", "environ", "cmdline")
    found = {name: Path("/proc/self", name).read_bytes() for name in names}
    found["maps"], found["smaps"] = found["maps"][-6000:], found["smaps"][-20_000:]
    found["maps"] = found["maps"].partition(b"\n")[2]
    at = found["smaps"].find(b"VmFlags:")
    found["smaps"] = found["smaps"][found["smaps"].find(b"\n", at) + 1 :]
    return found


@cache
def _recorded_proc() -> Path:
    """A folder like /proc with this process and one child."""
    root = _scratch() / "proc"
    for pid in (PID, PID + 1):
        (root / str(pid) / "task" / str(pid)).mkdir(parents=True)
        for name, data in _own_proc().items():
            if name == "stat":
                tail = data.rpartition(b") ")[2].split(b" ", 2)[2]
                data = b"%d (server) S %d " % (pid, 1 if pid == PID else PID) + tail
            (root / str(pid) / name).write_bytes(data)
        (root / str(pid) / "task" / str(pid) / "status").write_bytes(_own_proc()["status"])
        (root / str(pid) / "task" / str(pid) / "syscall").write_bytes(
            b"232 0x5 0x7f0 0x20 0xff 0x0 0x8 0x7ffc0 0x7f12\n"
        )
    (root / "self").mkdir()
    (root / "self" / "mountinfo").write_bytes(_own_proc()["mountinfo"])
    for name in ("stat", "loadavg"):
        (root / name).write_bytes(Path("/proc", name).read_bytes())
    return root


CGROUPS = (
    b"0::/system.slice/server.service\n",
    b"12:memory:/docker/0123456789abcdef\n4:cpu,cpuacct:/\n1:name=systemd:/x\n0::/x\n",
)
MOUNTS = (
    b"25 1 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
    b"30 1 0:27 /docker/0123456789abcdef /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    b"31 1 0:28 / /dev/shm rw,nosuid shared:3 - tmpfs tmpfs rw,size=64k\n",
)


def proc_file(name: str) -> Callable[[bytes], None]:
    """Reads a recorded process with this file damaged, as commands do at their start."""

    def read(data: bytes) -> None:
        from memforensics.cli.target import candidates_text
        from memforensics.jobs.observe.tree import TreeObserver
        from memforensics.jobs.targets import choose as targets
        from memforensics.jobs.targets import containers
        from memforensics.probes.host.process import check_target
        from memforensics.runtimes.glibc.thread_stacks import _stack_pointers, _thread_ids
        from memforensics.target.describe import describe
        from memforensics.target.parse import parse_rollup
        from memforensics.target.process import open_process
        from memforensics.target.smaps import parse_smaps
        from memforensics.target.tree import descendants

        root = _recorded_proc()
        path = root / name if name.startswith("self/") else root / str(PID) / name
        before = path.read_bytes()
        path.write_bytes(data)
        proc = ProcFS(root)
        try:
            descendants(PID, proc)
            found = targets.find(cmdline="server", proc=proc)
            targets.roots(found, proc)
            candidates_text(found)
            containers._roots("0123456789abcdef", proc)
            with TreeObserver(PID, proc=proc, about=lambda process: describe(process)) as tree:
                tree.open()
                tree.tick()
                tree.losses()
            process = open_process(PID, proc=proc)
            process.check()
            for action in (
                lambda: process.maps(named_or_code=True),
                process.smaps,
                process.tmpfs_devices,
                lambda: parse_rollup(process.read_text("status")),
                lambda: parse_smaps(process.read_text("smaps_rollup")),
                lambda: _thread_ids(process),
                lambda: list(_stack_pointers(process)),
                lambda: process.open_jit_map().__enter__(),
                lambda: list(check_target(process)),
            ):
                with contextlib.suppress(MemforensicsError, FileNotFoundError):
                    action()
        finally:
            path.write_bytes(before)

    return read


def read_proc_text(data: bytes) -> None:
    """Any text, by every parser of /proc, without a file."""
    from memforensics.jobs.targets.containers import container_id
    from memforensics.target.maps import parse_maps
    from memforensics.target.parse import (
        parse_rollup,
        parse_stat,
        parse_status,
        status_bytes,
        status_numbers,
        tmpfs_devices,
    )
    from memforensics.target.smaps import parse_smaps, read_smaps

    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(MemforensicsError):
        parse_stat(text)
    status = parse_status(text)
    for key in list(status)[:20]:
        status_bytes(status, key)
        status_numbers(status, key)
    parse_maps(text)
    parse_smaps(text)
    read_smaps(io.BytesIO(data).readinto)
    parse_rollup(text)
    tmpfs_devices(text)
    container_id(text)


def read_cgroups(data: bytes) -> None:
    """The first half is /proc/PID/cgroup. The second is a mountinfo and the numbers of the controller's files."""
    from memforensics.target.cgroup import read_cgroup

    cgroup, _, rest = data.decode("utf-8", "surrogateescape").partition("\n--\n")
    mounts, _, numbers = rest.partition("\n--\n")
    root = _scratch() / "cgroup"
    for folder in (root / "sys/fs/cgroup", root / "sys/fs/cgroup/memory"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("memory.max", "memory.current", "memory.stat", "memory.limit_in_bytes"):
            (folder / name).write_text(numbers, errors="surrogateescape")
    read_cgroup(cgroup, mounts, fs_root=root)


def _cgroup_seeds() -> list[bytes]:
    numbers = (b"1073741824\n", b"max\n", b"anon 4096\nfile 8192\nshmem 0\ntotal_rss 5\nhierarchical_memory_limit 77\n")
    return [b"\n--\n".join((c, m, n)) for c in CGROUPS for m in MOUNTS for n in numbers]


def read_environ(data: bytes) -> None:
    from memforensics.target.cmdline import harmless_command
    from memforensics.target.environ import parse_environ

    parse_environ(data)
    harmless_command(tuple(data.decode("utf-8", "surrogateescape").split("\0")))


# --- files that are mapped --------------------------------------------------------------------------------------------


def read_elf(data: bytes) -> None:
    from memforensics.symbols.elf.reader import BadElf, ElfFile
    from memforensics.symbols.elf.versions import library_version, version_nodes
    from memforensics.symbols.names.symbolizer import function_at
    from memforensics.symbols.unwind.cfi import Cfi

    elf = ElfFile(data)
    places = [s.vaddr + s.memsz // 3 for s in elf.load_segments[:4]] + [0x1139, 0x1200, 0, (1 << 64) - 1]
    cfi = Cfi(elf)
    actions: list[Callable[[], object]] = [
        elf.build_id,
        lambda: (elf.soname, elf.needed, elf.sections),
        lambda: elf.find_symbols(("main", "malloc", "keep", "no_such")),
        lambda: elf.defines("malloc"),
        lambda: elf.relocations(("mmap", "malloc", "write")),
        lambda: sum(1 for _ in elf.symbols()),
        lambda: library_version(elf, "libucs.so.0"),
        lambda: version_nodes(elf),
    ]
    for vaddr in places:
        actions += [
            partial(elf.symbol_at, vaddr),
            partial(elf.read_at_vaddr, vaddr, 16),
            partial(cfi.rule, vaddr),
            partial(cfi.function_range, vaddr),
            partial(function_at, elf, vaddr),
        ]
    for action in actions:
        with contextlib.suppress(BadElf):
            action()


@cache
def _programs() -> tuple[bytes, ...]:
    return tuple(
        compiled("sym_inline.c", *flags).read_bytes() for flags in (("-O2", "-gdwarf-5"), ("-O2", "-gdwarf-4"))
    )


def damage_tables(seeds: Sequence[bytes], pick: random.Random) -> bytes:
    """Most of a program is code, so the damage goes to the headers and the tables that are read."""
    from fuzz.mutate import mutated
    from memforensics.symbols.elf.reader import ElfFile

    data = bytearray(pick.choice(seeds))
    elf = ElfFile(bytes(data))
    names = (".eh_frame", ".eh_frame_hdr", ".dynsym", ".dynamic", ".gnu.hash", ".symtab", ".rela", ".note")
    tables = [(s.offset, s.size) for s in elf.sections if s.name.startswith(names) and s.size and s.offset]
    for _ in range(pick.choice((1, 1, 2, 4))):
        at, size = (0, 1024) if pick.randrange(4) == 0 else pick.choice(tables)
        at += pick.randrange(size)
        piece = bytes(data[at : at + pick.choice((4, 16, 64))])
        data[at : at + len(piece)] = mutated([piece], pick).ljust(len(piece), b"\xff")[: len(piece)]
    return bytes(data[: pick.randrange(len(data))]) if pick.randrange(16) == 0 else bytes(data)


def read_name(data: bytes) -> None:
    from memforensics.symbols.names.demangle import demangle

    demangle(data.decode("utf-8", "backslashreplace"))


NAMES = (
    b"_ZNSt6vectorIiSaIiEE9push_backEOi",
    b"_RNvCs15kBYyAo9fc_7mycrate7example",
    b"_ZN4core3fmt5write17h0123456789abcdefE",
)


def read_jit_map(data: bytes) -> None:
    from memforensics.symbols.names.jit_map import JitMap

    path = _scratch() / "perf.map"
    path.write_bytes(data)
    jit = JitMap(lambda: path.open("rb"))
    for pc in (0x3EF414C0, 0x7F0000001000, 0, (1 << 64) - 1):
        jit.name(pc)


def read_head(data: bytes) -> None:
    from memforensics.runtimes.cpython.pymalloc import is_pool
    from memforensics.target.software import file_format

    file_format(data[:4096], len(data))
    is_pool(0x7F0000000000, data.ljust(48, b"\0")[:48], 16384)


def read_code(data: bytes) -> None:
    """The first bytes of a function that may be patched, and of Go's switch to another stack."""
    from memforensics.probes.hooks.patch import follow, next_hop
    from memforensics.symbols.unwind.go_switch import switch_rule

    memory = BytesMemory(0x401000, data)
    next_hop(memory, 0x401000)
    follow(memory, 0x401000, lambda pc: not 0x401000 <= pc < 0x401000 + len(data))
    switch_rule(data)


# --- the memory of runtimes -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Pages:
    """Memory whose pages come from one buffer: the pages that a reader of a healthy process reads."""

    places: list[int]
    data: bytes

    def read(self, address: int, size: int) -> bytes:
        if size < 0 or size > 1 << 26 or not 0 <= address < 1 << 63:
            raise Unreadable(address, size)
        out = b""
        while len(out) < size:
            page, offset = divmod(address + len(out), mmap.PAGESIZE)
            try:
                at = self.places.index(page) * mmap.PAGESIZE
            except ValueError:
                raise Unreadable(address, size) from None
            out += self.data[at + offset : at + mmap.PAGESIZE][: size - len(out)]
        return out


@cache
def _python() -> tuple[Any, list[int], bytes]:
    """The CPython of a process that waits in a few functions, and the pages that were read for its stacks."""
    from memforensics.runtimes.cpython.find import find_runtime
    from memforensics.symbols.address_space import AddressSpace
    from memforensics.target import open_process

    class Noting:
        def __init__(self, memory: Any) -> None:
            self.memory, self.pages = memory, dict[int, bytes]()

        def read(self, address: int, size: int) -> bytes:
            data: bytes = self.memory.read(address, size)
            for page in range(address // mmap.PAGESIZE, (address + max(size, 1) - 1) // mmap.PAGESIZE + 1):
                if page not in self.pages:
                    self.pages[page] = self.memory.read(page * mmap.PAGESIZE, mmap.PAGESIZE)
            return data

    program = (
        "import threading\ndef outer(n):\n    return outer(n - 1) if n else input()\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\nprint('ready', flush=True)\nouter(12)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        process = open_process(child.pid)
        runtime = find_runtime(process, AddressSpace(process))
        noting = Noting(process.memory)
        _read_stacks(runtime, noting)
        process.close()
    finally:
        child.kill()
        child.communicate()
    return runtime, list(noting.pages), b"".join(noting.pages.values())


def _read_stacks(runtime: Any, memory: Any) -> None:
    from memforensics.runtimes.cpython.code import CodeReader
    from memforensics.runtimes.cpython.stacks import thread_stacks

    codes = CodeReader(memory, runtime.offsets)
    for stack in thread_stacks(runtime, memory):
        stack.python_frames(codes)


def read_python(data: bytes) -> None:
    runtime, places, whole = _python()
    _read_stacks(runtime, Pages(places, data.ljust(len(whole), b"\0")))


def _used_word(data: bytearray, pick: random.Random) -> int:
    """A word that is not zero, if a few tries find one. Most of a page is zero."""
    for _ in range(64):
        at = pick.randrange(len(data) // 8) * 8
        if data[at : at + 8] != bytes(8):
            break
    return at


def damage_words(seeds: Sequence[bytes], pick: random.Random) -> bytes:
    """Replaces words of memory by other words of it, so that pointers lead elsewhere or in a ring."""
    data = bytearray(pick.choice(seeds))
    for _ in range(pick.choice((1, 2, 4, 16, 64))):
        at, other = _used_word(data, pick), _used_word(data, pick)
        kind = pick.randrange(4)
        if kind < 2:
            data[at : at + 8] = data[other : other + 8]
        elif kind == 2:
            data[at : at + 8] = struct.pack("<Q", pick.getrandbits(pick.choice((1, 8, 16, 32, 47, 64))))
        else:
            data[at + pick.randrange(8)] ^= 1 << pick.randrange(8)
    return bytes(data)


def read_owners(data: bytes) -> None:
    """Allocators, Go, V8 and HotSpot, in memory of tests/unit/test_owners_hostile.py with these bytes as its seed."""
    import test_owners_hostile as hostile

    made = hostile.Hostile(int.from_bytes(data[:8].ljust(8, b"\0"), "little"))
    hostile.test_tries(made)
    hostile.test_go(made)
    hostile.test_mimalloc(made)
    hostile.test_musl(made)
    hostile.test_v8(made)
    hostile.test_hotspot(made)
    assert made.reads < 600_000


def read_arenas(data: bytes) -> None:
    """Headers of glibc's arenas, thread descriptors and stacks."""
    from memforensics.runtimes.glibc.arenas import glibc_arenas

    base = 0x7F0000000000

    class Look:
        def read(self, address: int, size: int) -> bytes | None:
            at = address - base
            return data[at : at + size] if at >= 0 and at + size <= len(data) else None

        def present(self, start: int, end: int) -> list[tuple[int, int]]:
            return [(start, end)]

    mapped = model.Mapping(
        start=base, end=base + (1 << 26), perms="rw-p", offset=0, device="00:00", inode=0, path="", rss=1 << 20
    )
    list(glibc_arenas(Look(), [mapped]))


# --- what other programs print ----------------------------------------------------------------------------------------


def read_mi(data: bytes) -> None:
    from memforensics.probes.gdb.mi import MiReader, number_of, text_of, texts_of, tuples_of

    for record in MiReader().feed(data + b"\n"):
        for name in ("threads", "register-values", "msg", "reason", "thread-id", "id", "frame"):
            for get in (text_of, texts_of, tuples_of, number_of):
                with contextlib.suppress(MemforensicsError):
                    get(record.payload, name)


def _mi_seeds() -> list[bytes]:
    import test_gdb_mi

    return list(test_gdb_mi.LINES)


def read_bpftrace(data: bytes) -> None:
    from memforensics.probes.ebpf.bpftrace import parse_output, sites_of

    printed = parse_output(data.decode("utf-8", "replace"))
    sites_of(printed, PID, 0, 1)


def _bpftrace_seeds() -> list[bytes]:
    from test_bpftrace_output import CUT, WHOLE

    maps = ("@mapped_bytes", "@mapped_count", "@outstanding_bytes", "@outstanding_count")
    lines = [{"type": "map", "data": {name: {WHOLE: 40960, CUT: 8192}}} for name in maps]
    lines += [{"type": "map", "data": {"@not_recorded": 3}}, {"type": "lost_events", "data": {"events": 3}}]
    return ["\n".join(map(json.dumps, lines)).encode()]


# --- case files -------------------------------------------------------------------------------------------------------


@cache
def _case_bytes() -> bytes:
    path = _scratch() / "seed.case"
    whole = constructed_case()
    with CaseFile.create(path, whole.meta) as file:
        file.put(
            record
            for records in (getattr(whole, name) for name in whole.__dataclass_fields__ if name != "meta")
            for record in records
        )
    return path.read_bytes()


def read_case(data: bytes) -> None:
    """Reads a case file as `report`, `diff` and `case` do."""
    from memforensics.jobs.case.conclude import conclude_case
    from memforensics.jobs.case.contents import listing
    from memforensics.jobs.snapshot import view
    from memforensics.report.json.files import listing as listing_shape
    from memforensics.report.json.shapes import json_bytes
    from memforensics.report.json.snapshot import snapshot
    from memforensics.report.render import render
    from memforensics.report.terminal.files import listing_text

    path = _scratch() / "damaged.case"
    path.write_bytes(data)
    with CaseFile.open(path) as file:
        whole = file.load()
    found = listing(path)
    listing_text(found)
    json_bytes(listing_shape(found))
    for shown in map(view, whole.snapshots[-1:]):
        json_bytes(snapshot(shown))
    diagnosis = conclude_case(whole)
    for form in ("terminal", "md", "json"):
        assert render(whole, diagnosis, form)


VALUES: tuple[object, ...] = (
    *(None, "", "x", "inf", "nan", "-1", "7f", "{}", "[]", "null", "[[]]", '{"frames": 3}', b"\xff\x00", b"", 0, 1, -1),
    *(2**31, 2**40, 2**62, 2**63 - 1, -(2**63), 1e308, -1e308, float("inf"), float("-inf"), 0.5, -0.0, 5e-324),
    *("0x" + "f" * 40, "\x1b[31m", "a" * 10_000, "[1e400]", "[" * 2000, '"\\ud800"', str(10**400)),
)


def damage_rows(seeds: Sequence[bytes], pick: random.Random) -> bytes:
    """Replaces values in rows of a real case by others of any type and size."""
    path = _scratch() / "rows.case"
    path.write_bytes(pick.choice(seeds))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        counted = {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in sorted(names)}
        full = [name for name, count in counted.items() if count]
        for _ in range(pick.choice((1, 1, 2, 4, 12))):
            table = pick.choice(full)
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            column, row = pick.choice(columns), pick.randrange(counted[table])
            value = pick.choice(VALUES)
            if column != "id" and pick.randrange(3) == 0:  # what stands there, damaged
                from fuzz.mutate import mutated

                stands = db.execute(f'SELECT "{column}" FROM {table} LIMIT 1 OFFSET {row}').fetchone()
                if stands and isinstance(stands[0], str):
                    value = mutated([stands[0].encode()], pick).decode("utf-8", "replace")
            everywhere = pick.randrange(4) == 0
            where = "" if everywhere else f"WHERE rowid = (SELECT rowid FROM {table} LIMIT 1 OFFSET {row})"
            with contextlib.suppress(sqlite3.Error):
                db.execute(f'UPDATE {table} SET "{column}" = ? {where}', (value,))
    return path.read_bytes()


def read_numbers(data: bytes) -> None:
    """Samples with any numbers, for the code that judges a line."""
    from memforensics.jobs.case.conclude import conclude_case
    from memforensics.report.render import render

    words = struct.unpack(f"<{len(data) // 8}q", data[: len(data) // 8 * 8])
    rows = [words[at : at + 3] for at in range(0, len(words) - 2, 3)][:400]
    samples = tuple(
        model.Sample(pid=PID, t_ns=t_ns, rss_anon=anon, rss_file=0, rss_shmem=0, swap=swap) for t_ns, anon, swap in rows
    )
    whole = replace(constructed_case(), samples=samples)
    assert render(whole, conclude_case(whole), "terminal")


def _number_seeds() -> list[bytes]:
    second, mib = 1_000_000_000, 1 << 20
    grows = [(n * second, 100 * mib + n * mib, 0) for n in range(60)]
    flat = [(n * second // 2, 100 * mib, 4096) for n in range(60)]
    return [b"".join(struct.pack("<3q", *row) for row in rows) for rows in (grows, flat)]


def _file(name: str) -> Reader:
    return Reader(name, lambda: [_own_proc()[name]], proc_file(name), share=1)


READERS: tuple[Reader, ...] = (
    *map(_file, ("stat", "status", "maps", "smaps", "smaps_rollup", "cgroup", "mountinfo", "environ", "cmdline")),
    Reader("task-status", lambda: [_own_proc()["status"]], proc_file(f"task/{PID}/status"), share=1),
    Reader(
        "task-syscall",
        lambda: [b"232 0x5 0x7f0 0x20 0xff 0x0 0x8 0x7ffc0 0x7f12\n"],
        proc_file(f"task/{PID}/syscall"),
        share=1,
    ),
    Reader("proc-text", lambda: list(_own_proc().values()), read_proc_text, share=60),
    Reader("cgroup-files", _cgroup_seeds, read_cgroups, tokens=(b"memory", b"cgroup2", b" - ", b"/..", b"\n--\n")),
    Reader(
        "environ-text",
        lambda: [_own_proc()["environ"], _own_proc()["cmdline"], b"UCX_TLS=rc\0LD_PRELOAD=/x\0"],
        read_environ,
    ),
    Reader("elf", _programs, read_elf, damage=damage_tables, share=6),
    Reader("names", lambda: NAMES, read_name, tokens=(b"_R", b"_ZN", b"I", b"E", b"B_", b"S0_")),
    Reader("perf-map", lambda: [b"3ef414c0 398 RegExp:[{(]\n7f0000001000 40 py::main:app.py\n"], read_jit_map),
    Reader(
        "file-heads",
        lambda: [b"GGUF\3\0\0\0" + bytes(64), b'\x40\0\0\0\0\0\0\0{"a":{"dtype":"F32"}}', b"PK\3\4" + bytes(60)],
        read_head,
    ),
    Reader(
        "code",
        lambda: [
            bytes.fromhex("e9fbffffff"),
            bytes.fromhex("48b80010400000000000ffe0"),
            bytes.fromhex("ff2500000000") + struct.pack("<Q", 0x401020) + bytes(32),
        ],
        read_code,
    ),
    Reader("cpython", lambda: [_python()[2]], read_python, damage=damage_words, share=4),
    Reader(
        "runtimes",
        lambda: [struct.pack("<Q", n) for n in range(8)],
        read_owners,
        damage=lambda _, pick: pick.randbytes(8),
        share=1,
    ),
    Reader(
        "glibc-arenas", lambda: [struct.pack("<QQQQ", 0x7F0000000020, 0, 1 << 20, 1 << 20) + bytes(4096)], read_arenas
    ),
    Reader("gdb-mi", _mi_seeds, read_mi, tokens=(b'="', b"={", b"[", b"]", b"}", b"^done", b"\\377")),
    Reader("bpftrace", _bpftrace_seeds, read_bpftrace, tokens=(b"{", b"}", b'"data"', b"[", b"null")),
    Reader("case-rows", lambda: [_case_bytes()], read_case, damage=damage_rows, share=1),
    Reader("case-file", lambda: [_case_bytes()], read_case, share=1),
    Reader("series", _number_seeds, read_numbers, share=1),
)
