"""Whether anything in a process still points to a block: a search of its memory for addresses, from outside.

A reference is a word at a multiple of 4 that holds an address in the block (without the high 16 bits, which tags and
boxed values use), the number of one of its pages, or an address in the form in which a language keeps integers
(`_decoded`). Words in the block itself do not count. Words in any other memory do, stale copies and numbers that happen
to be equal included.

So a block with a reference may still be lost. A block without a reference in two searches is lost, unless its address
is where a search of memory cannot see it: encoded (XOR-linked lists, compressed pointers), unaligned, only in
registers, only in the kernel (io_uring, DMA), in another process, or in pages that are not present. docs/limits.md has
measured rates.

Only present pages are read, so that reading creates none. A block is no longer searched for once a reference was found,
so the search of a healthy process ends early.
"""

import os
import random
import re
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from memforensics.case.model import Cohort, Mapping
from memforensics.errors import MemforensicsError
from memforensics.target import Process
from memforensics.target.memory import Unreadable
from memforensics.target.pagemap import Pagemap
from memforensics.units import GIB, MIB, NS_PER_S, size_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Words = npt.NDArray[np.uint64]

SAMPLED_BLOCKS = 48  # of a site
LEAST_AGE_NS = 2 * NS_PER_S
LIMIT_BYTES = 16 * GIB  # a process with more is not searched
LIMIT_S = 8.0
PIECE_BYTES = MIB // 2
MAX_ENTRIES = 4096  # threads, and descriptors, whose words are read
_ADDRESS_MASK = (1 << 48) - 1
_PAGE_BITS = 12
_DEVICE = re.compile(r"/dev/(?!zero|shm/)|\[v(var|dso|syscall)")
_EPOLL_DATA = re.compile(r"^tfd:.* data: *([0-9a-f]+)", re.MULTILINE)
_WORD = re.compile(r"0x([0-9a-f]+)")

Span = tuple[int, int]


class Block(NamedTuple):
    """An outstanding block: the parts of its range that are still mapped."""

    born_ns: int
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Search:
    """The result of a search. `unreferenced`: the blocks without a reference. `why`: what was not read."""

    t_ns: int
    unreferenced: frozenset[Block]
    bytes_read: int
    why: str = ""


# --- which blocks ---------------------------------------------------------------------------------------------------


def old_blocks(
    blocks: Iterable[Block], cohorts: Sequence[Cohort], now_ns: int, rng: random.Random
) -> tuple[Block, ...]:
    """A sample of the blocks that are older than the median lifetime of the site's blocks. If fewer than half of every
    cohort were freed, of the blocks older than half of the time since the first birth."""
    least = least_age_ns(cohorts, now_ns)
    old = sorted(block for block in blocks if now_ns - block.born_ns >= least)
    return tuple(rng.sample(old, min(SAMPLED_BLOCKS, len(old))))


def least_age_ns(cohorts: Sequence[Cohort], now_ns: int) -> int:
    born = [cohort for cohort in cohorts if cohort.born_count]
    least = (now_ns - born[0].born_from_ns) // 2 if born else LEAST_AGE_NS
    for cohort in reversed(born):
        if 2 * cohort.left_count <= cohort.born_count:
            least = now_ns - cohort.born_from_ns
            break
    return max(LEAST_AGE_NS, least)


# --- the search -----------------------------------------------------------------------------------------------------


def search(
    process: Process, blocks: Iterable[Block], *, limit_bytes: int = LIMIT_BYTES, limit_s: float = LIMIT_S
) -> Search:
    """Looks for pointers to the blocks. TargetGone, PermissionNeeded."""
    searched = _SearchedBlocks(blocks)
    now_ns = time.monotonic_ns()
    sample = process.sample()
    held = sample.rss_anon + sample.rss_shmem
    why = ""
    if sample.swap:
        why = f"{size_text(sample.swap)} of the process are swapped out"
    elif held > limit_bytes:
        why = f"the process holds {size_text(held)}, and at most {size_text(limit_bytes)} are searched"
    if why:
        return Search(now_ns, searched.blocks(), 0, why)
    searched.check_words(_kernel_words(process))
    read = unreadable = 0
    end = time.monotonic() + limit_s
    for start, size in _pieces(process):
        if not searched.any or time.monotonic() > end:
            break
        try:
            data = process.memory.read(start, size)
        except Unreadable:
            unreadable += size
            continue
        read += size
        searched.check_memory(start, data)
    if searched.any and time.monotonic() > end:
        why = f"the search ended after {limit_s:.0f} s, not at the end of the memory"
    elif unreadable:
        why = f"{size_text(unreadable)} could not be read"
    return Search(now_ns, searched.blocks(), read, why)


class _SearchedBlocks:
    """The blocks without a reference so far, as sorted ranges."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._set(sorted((start, end, block) for block in blocks for start, end in block.spans))

    def _set(self, spans: list[tuple[int, int, Block]]) -> None:
        import numpy as np

        self._spans = spans
        self._starts = np.array([start for start, _, _ in spans], dtype=np.uint64)
        self._ends = np.array([end for _, end, _ in spans], dtype=np.uint64)

    @property
    def any(self) -> bool:
        return bool(self._spans)

    def blocks(self) -> frozenset[Block]:
        return frozenset(block for _, _, block in self._spans)

    def check_memory(self, at: int, data: bytes) -> None:
        """Drops blocks that this memory refers to. Comparing the high half of each word rules most words out."""
        import numpy as np

        if not self._spans or len(data) < 8:
            return
        halves = np.frombuffer(data, dtype="<u4", count=len(data) // 4)
        low, high = halves[:-1], halves[1:]
        first, last = int(self._starts[0]), int(self._ends[-1]) - 1
        near = _between(high & np.uint32(0xFFFF), first >> 32, last >> 32)
        for encoded in (_as_page, _as_tagged, _as_digits, _as_double):
            near |= _between(high, encoded(first), encoded(last))
        places = np.flatnonzero(near)
        if places.size:
            addresses = places.astype(np.uint64) * np.uint64(4) + np.uint64(at)
            for values in _decoded(low[places].astype(np.uint64), high[places].astype(np.uint64)):
                self._drop(self._found(values, addresses))

    def check_words(self, values: Iterable[int]) -> None:
        """Drops blocks that one of these words refers to."""
        import numpy as np

        words = np.fromiter((value & _ADDRESS_MASK for value in values), dtype=np.uint64)
        self._drop(self._found(words, None))

    def _drop(self, found: set[Block]) -> None:
        if found:
            self._set([entry for entry in self._spans if entry[2] not in found])

    def _found(self, values: "Words", addresses: "Words | None") -> set[Block]:
        """Blocks that hold one of the values as an address. A value that lies in the block itself does not count."""
        import numpy as np

        if not self._spans:
            return set()
        which = np.searchsorted(self._starts, values, side="right").astype(np.int64) - 1
        hits = np.flatnonzero((which >= 0) & (values < self._ends[which]))
        found: set[Block] = set()
        for hit in hits.tolist():
            block = self._spans[which[hit]][2]
            if block not in found:
                address = None if addresses is None else int(addresses[hit])
                if address is None or not any(start <= address < end for start, end in block.spans):
                    found.add(block)
        return found


# The high half of a word that holds an address, for each encoding. All grow with the address.


def _as_page(address: int) -> int:
    return address >> (32 + _PAGE_BITS)


def _as_tagged(address: int) -> int:
    return address >> 31


def _as_digits(address: int) -> int:
    return address >> 30


def _as_double(address: int) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", address))[0]) >> 32


def _between(values: "npt.NDArray[np.uint32]", low: int, high: int) -> "npt.NDArray[np.bool_]":
    import numpy as np

    found: npt.NDArray[np.bool_] = values - np.uint32(low) <= np.uint32(high - low)
    return found


def _decoded(low: "Words", high: "Words") -> "Iterator[Words]":
    """The addresses that words may hold: plain, with tags in the high 16 bits; page numbers; integers shifted for a tag
    bit (Ruby, OCaml, Lisp); Python's integers, in digits of 30 bits; floating-point numbers (JavaScript)."""
    import numpy as np

    words = low | high << np.uint64(32)
    yield words & np.uint64(_ADDRESS_MASK)
    yield np.where(high < 1 << 16, words << np.uint64(_PAGE_BITS), 0)
    yield words >> np.uint64(1)
    yield np.where(low < 1 << 30, low | high << np.uint64(30), 0)
    numbers = words.view(np.float64)
    sane = (high >= 0x3FF00000) & (high < 0x43E00000)  # from 1 to 2**63
    yield np.where(sane, numbers, 0.0).astype(np.uint64)


# --- what is read ---------------------------------------------------------------------------------------------------


def _pieces(process: Process) -> Iterator[tuple[int, int]]:
    """Start and size of present memory that may hold pointers, a piece at a time."""
    with Pagemap(process.pid, process.proc) as pagemap:
        can_scan = pagemap.can_scan()
        for mapping in process.maps().mappings:
            if _may_point(mapping):
                for start, end in _present(pagemap, mapping, can_scan=can_scan):
                    for at in range(start, end, PIECE_BYTES):
                        yield at, min(PIECE_BYTES, end - at)


def _may_point(mapping: Mapping) -> bool:
    """Whether the process can have written a pointer there. A private file mapping is: its written pages are anonymous;
    a shared one that it cannot write is not."""
    if _DEVICE.match(mapping.path):
        return False
    return not (mapping.inode and mapping.shared and "w" not in mapping.perms)


def _present(pagemap: Pagemap, mapping: Mapping, *, can_scan: bool) -> Iterator[Span]:
    """Present pages; of a private mapping of a file those that were written to, which are the anonymous ones."""
    of_file = bool(mapping.inode) and not mapping.shared
    if can_scan:
        for start, end, is_file in pagemap.scan(mapping.start, mapping.end, kinds=of_file):
            if not (of_file and is_file):
                yield start, end
    elif not of_file or "w" in mapping.perms:
        yield from pagemap.present(mapping.start, mapping.end)


def _kernel_words(process: Process) -> Iterator[int]:
    """The words that the kernel holds for the process and shows: arguments of the system calls in which its threads
    wait, and the data that it registered with epoll."""
    for tid in process.threads()[:MAX_ENTRIES]:
        text = _text(process, f"task/{tid}/syscall")
        yield from (int(word, 16) for word in _WORD.findall(text))
    folder = process.proc.root / str(process.pid) / "fd"
    try:
        descriptors = os.listdir(folder)[:MAX_ENTRIES]
    except OSError:
        return
    for descriptor in descriptors:
        try:
            is_epoll = os.readlink(folder / descriptor) == "anon_inode:[eventpoll]"
        except OSError:
            continue
        if is_epoll:
            text = _text(process, f"fdinfo/{descriptor}")
            yield from (int(word, 16) for word in _EPOLL_DATA.findall(text))


def _text(process: Process, name: str) -> str:
    """Empty if the file cannot be read: the thread ended, the descriptor was closed, or it is forbidden."""
    try:
        return process.read_text(name)
    except MemforensicsError:
        return ""
