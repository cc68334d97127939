"""The heap of V8, as in Node.js, by the headers of its chunks.

V8 maps memory in chunks (256 KiB, or the size of one large object), each with a header (src/heap/memory-chunk.h,
basic-memory-chunk.h): size, flags, the address of its Heap, start and end of its objects. All chunks of one isolate
have the same Heap. This works for the versions with this header in the chunk (tested: V8 11.3, Node 20); the memory of
others stays anonymous.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator

from memforensics.case.model import OwnerMark
from memforensics.runtimes.reading import Reading, Run
from memforensics.runtimes.scene import Scene
from memforensics.units import KIB

_ALIGN = 256 * KIB  # MemoryChunk::kAlignment
_HEADER = struct.Struct("<5Q")  # size, flags, heap, area start, area end
_MAX_HEADER = 64 * KIB  # marking bitmap included
_MIN_CHUNKS = 4  # of one Heap: each of its spaces has one
_MAX_CHUNKS = 16_384  # read per snapshot


def recognise(scene: Scene) -> Iterator[OwnerMark]:
    """Chunks of the V8 heap."""
    found = chunks(scene.reader, [(mapping.start, mapping.end) for mapping in scene.heap_mappings])
    yield from scene.marks(found, "v8-heap", "a chunk by its header")


def chunks(reading: Reading, mappings: Iterable[Run]) -> list[Run]:
    """Chunks that begin where a mapping begins, and chunks that follow directly. `mappings`: private anonymous."""
    found = list(_candidates(reading, mappings))
    of_heap = Counter(heap for _, heap in found)
    return [run for run, heap in found if of_heap[heap] >= _MIN_CHUNKS]


def _candidates(reading: Reading, mappings: Iterable[Run]) -> Iterator[tuple[Run, int]]:
    reads_left = _MAX_CHUNKS
    for start, end in mappings:
        at = start if start % _ALIGN == 0 else end
        while at < end and reads_left:
            reads_left -= 1
            data = reading.read(at, _HEADER.size)
            size, _, heap, first, last = _HEADER.unpack(data or bytes(_HEADER.size))
            fits = 0 < size <= end - at and size % 4096 == 0 and at < first <= at + _MAX_HEADER and first < last
            if not fits or not at + size - 4096 < last <= at + size or not 4096 < heap < 1 << 47 or heap % 8:
                break
            yield (at, at + size), heap
            at += -(-size // _ALIGN) * _ALIGN
