"""Passive recognition of who owns a mapping, by what is written in it and where it lies.

Nothing runs in the target and nothing stops it. The recognisers find `OwnerMark`s; `analysis/ownership.py` decides what
they mean. To add one, write a module with a `recognise` function (`runtimes/scene.py`), list it here, and test it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile

from memforensics.case.model import Loss, OwnerMark, Snapshot
from memforensics.errors import PermissionNeeded
from memforensics.probes.proc import special_files
from memforensics.runtimes import golang, hotspot, mimalloc, musl, page_tries, v8
from memforensics.runtimes.cpython import pymalloc
from memforensics.runtimes.glibc import arenas, mmapped_chunks, thread_stacks
from memforensics.runtimes.reading import PageReader, Reading
from memforensics.runtimes.scene import NegativeCache, Recogniser, Scene
from memforensics.runtimes.static_data import is_private_anonymous
from memforensics.target import Process
from memforensics.target.memory import Memory
from memforensics.target.pagemap import Pagemap
from memforensics.target.realtime_priority import realtime_priority

# Allocators whose code is in some mapped file. While the same files are mapped, one that found nothing is skipped.
ALLOCATORS: tuple[Recogniser, ...] = (
    page_tries.recognise,
    golang.recognise,
    v8.recognise,
    mimalloc.recognise,
    musl.recognise,
)

# The first mark of a range counts. Owners that keep readable records come before those that are known by form.
RECOGNISERS: tuple[Recogniser, ...] = (
    hotspot.recognise,
    *ALLOCATORS,
    mmapped_chunks.recognise_known,
    arenas.recognise,
    thread_stacks.recognise,
    mmapped_chunks.recognise_chained,
    pymalloc.recognise,
    mmapped_chunks.recognise_searched,
    special_files.recognise_hugetlb,
    special_files.recognise_files,
)


def find_owners(
    process: Process, snapshot: Snapshot, *, known: Sequence[OwnerMark] = (), cache: NegativeCache | None = None
) -> tuple[tuple[OwnerMark, ...], tuple[Loss, ...]]:
    """The marks of the snapshot's mappings, ascending and without overlap, and what was not read.

    `known`: the marks of the snapshot before. Their places are read first, and a mark is kept only if the memory still
    confirms it. `cache`: where earlier snapshots found nothing; it is updated.

    TargetGone, NoSuchProcess. Without permission to read the memory there are no marks, and a Loss.
    """
    cache = cache or NegativeCache()
    try:
        memory: Memory = process.memory
        pagemap = Pagemap(process.pid, process.proc)
    except PermissionNeeded:
        lost = Loss(
            probe="owners",
            what="anonymous mappings whose content may not be read",
            count=sum(is_private_anonymous(m) and m.rss != 0 for m in snapshot.mappings),
            reduce="run as root, or grant CAP_SYS_PTRACE",
        )
        return (), (lost,)
    with pagemap:
        reader = PageReader(memory, pagemap, can_scan=pagemap.can_scan())
        scene = Scene(process, snapshot, reader, known, cache)
        for recognise in RECOGNISERS:
            if cache.modules.get(recognise) == scene.modules:
                continue
            count = len(scene.claimed.marks)
            scene.claimed.claim(recognise(scene))
            if recognise in ALLOCATORS and len(scene.claimed.marks) == count:
                cache.modules[recognise] = scene.modules
        with realtime_priority:
            found = tuple(piece for mark in scene.claimed.marks for piece in _by_mapping(reader, mark, snapshot))
    return found, tuple(reader.losses())


def _by_mapping(reader: Reading, mark: OwnerMark, snapshot: Snapshot) -> Iterator[OwnerMark]:
    """One mark for each mapping that it lies in; with resident bytes where it covers only a part of the mapping."""
    index = bisect_right(snapshot.mappings, mark.start, key=lambda m: m.start) - 1
    for mapping in takewhile(lambda m: m.start < mark.end, islice(snapshot.mappings, index, None)):
        start, end = max(mark.start, mapping.start), min(mark.end, mapping.end)
        whole = start == mapping.start and end == mapping.end
        resident = mark.resident_bytes if whole else sum(last - first for first, last in reader.present(start, end))
        yield OwnerMark(start=start, end=end, kind=mark.kind, detail=mark.detail, resident_bytes=resident)
