"""Passive recognition: who owns a mapping, by what is written in it and where it lies.

Nothing runs in the target and nothing stops it. Memory is read in small pieces, and only pages that pagemap says are
there: reading an untouched page would map the zero page into the target. What is found are `OwnerMark`s; what they
mean is decided by analysis/ownership.py. Each recogniser says what it trusts; when in doubt it says nothing, and the
mapping stays anonymous. None goes by the name of a library alone, nor by alignment.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile

from memforensics.case.model import Loss, OwnerMark, Snapshot
from memforensics.errors import PermissionNeeded
from memforensics.probes.proc.claimed_ranges import Ground, Look, Vain, is_private_anonymous
from memforensics.probes.proc.mmapped_chunks import Spans, chained_chunks, remembered_chunks, searched_chunks
from memforensics.probes.proc.owners.allocators import allocators
from memforensics.probes.proc.owners.arenas import glibc_arenas
from memforensics.probes.proc.owners.files import hugetlb, special_files
from memforensics.probes.proc.owners.jvm import jvm
from memforensics.probes.proc.owners.pymalloc import pymalloc
from memforensics.probes.proc.owners.stacks import thread_stacks
from memforensics.target import Process
from memforensics.target.memory import Memory
from memforensics.target.pagemap import Pagemap
from memforensics.target.realtime_priority import urgent


def find_owners(
    process: Process, snapshot: Snapshot, *, known: Sequence[OwnerMark] = (), vain: Vain | None = None
) -> tuple[tuple[OwnerMark, ...], tuple[Loss, ...]]:
    """What can be recognised in the snapshot's mappings, ascending and without overlap, and what was not looked at.

    `known`: the marks of an earlier snapshot of the same process. Where they were is looked at first, and believed only
    as far as what stands there now bears them out. `vain`: where those before found nothing, kept up here. What has
    records of its own, which are read, comes before what is told by its form.

    TargetGone and NoSuchProcess when it left; without the right to read its memory there are no marks, and a Loss.
    """
    vain = vain or Vain()
    anonymous = [m for m in snapshot.mappings if is_private_anonymous(m)]
    private = [m for m in anonymous if m.rss != 0]
    try:
        memory: Memory = process.memory
        pagemap = Pagemap(process.pid, process.proc)
    except PermissionNeeded:
        lost = Loss(
            probe="owners",
            what="anonymous mappings whose content may not be read",
            count=len(private),
            reduce="run as root, or grant CAP_SYS_PTRACE",
        )
        return (), (lost,)
    with pagemap:
        look = Look(memory, pagemap, can_scan=pagemap.can_scan())
        ground, spans = Ground(), Spans(anonymous)
        ground.claim(jvm(look, process, snapshot))
        ground.claim(_allocators(look, process, snapshot, vain))
        with urgent:
            ground.claim(remembered_chunks(look, spans, known))
        ground.claim(glibc_arenas(look, private))
        ground.claim(thread_stacks(look, process, snapshot))
        chunks, broken = chained_chunks(look, private, spans, ground, vain)
        ground.claim(chunks)
        with urgent:
            ground.claim(pymalloc(look, snapshot, private, ground, known))
        ground.claim(searched_chunks(look, broken, spans, ground, vain))
        ground.claim(hugetlb(look, process, snapshot))
        with urgent:
            marks = [piece for mark in ground.marks for piece in _by_mapping(look, mark, snapshot)]
    taken = Ground(marks)
    taken.claim(special_files(process, snapshot))
    return tuple(taken.marks), tuple(loss for loss in look.losses() if loss.count)


def _allocators(look: Look, process: Process, snapshot: Snapshot, vain: Vain) -> Iterator[OwnerMark]:
    """Not looked for again while the same files are mapped as when there was none."""
    modules = frozenset(mapping.path for mapping in snapshot.mappings)
    if modules == vain.modules:
        return
    marks = list(allocators(look, process, snapshot))
    vain.modules = None if marks else modules
    yield from marks


def _by_mapping(look: Look, mark: OwnerMark, snapshot: Snapshot) -> Iterator[OwnerMark]:
    """A mark for each mapping that it lies in; with resident bytes where it covers only a part of that."""
    index = bisect_right(snapshot.mappings, mark.start, key=lambda m: m.start) - 1
    for mapping in takewhile(lambda m: m.start < mark.end, islice(snapshot.mappings, index, None)):
        start, end = max(mark.start, mapping.start), min(mark.end, mapping.end)
        whole = start == mapping.start and end == mapping.end
        resident = mark.resident_bytes if whole else sum(last - first for first, last in look.present(start, end))
        yield OwnerMark(start=start, end=end, kind=mark.kind, detail=mark.detail, resident_bytes=resident)
