"""One BPF ring buffer, read a bounded number of records at a time: programs may write faster than we read.

Records that are not read stay in the kernel's buffer. The programs drop and count records for which there is no room.
"""

import ctypes
import mmap
import os
import select
import struct
from typing import Any

from memforensics.errors import ProbeFailed
from memforensics.probes.ebpf.loader.objects import Table


class Ring:
    """ProbeFailed from the constructor. `close` before the table's descriptor is closed."""

    def __init__(self, bcc: Any, table: Table, max_records: int) -> None:
        self._lib, self._max_records = bcc.libbcc.lib, max_records
        self._taken: list[bytes] = []
        self._discards, self._discarded = False, 0
        self._callback = bcc.libbcc._RINGBUF_CB_TYPE(self._take)
        self._descriptor = table.descriptor
        # The pages of the two positions (Documentation/bpf/ringbuf.rst): the reader's, then the programs'
        try:
            self._read = mmap.mmap(table.descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)
            self._written = mmap.mmap(
                table.descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE
            )
        except OSError as error:
            raise ProbeFailed(f"ring buffer {table.spec.name} cannot be opened", why=str(error)) from error
        self._ring = self._lib.bpf_new_ringbuf(table.descriptor, self._callback, None)
        if not self._ring:
            why = os.strerror(ctypes.get_errno())
            raise ProbeFailed(f"ring buffer {table.spec.name} cannot be opened", why=why)

    def _take(self, _context: Any, data: Any, size: int) -> int:
        """ring_buffer__consume() of libbpf calls this. A negative result stops it after this record."""
        if self._discards:
            self._discarded += 1
            return 0
        self._taken.append(ctypes.string_at(data, size))
        return 0 if len(self._taken) < self._max_records else -1

    def take(self) -> list[bytes]:
        """The oldest records, up to `max_records` of them, in order."""
        self._lib.bpf_consume_ringbuf(self._ring)
        out, self._taken = self._taken, []
        return out

    def discard(self) -> int:
        """Discards all records, and returns how many. Call it only when no program writes any more."""
        self._discards, self._discarded = True, 0
        self._lib.bpf_consume_ringbuf(self._ring)
        self._discards = False
        return self._discarded

    @property
    def position(self) -> int:
        """Bytes read since the beginning."""
        return int(struct.unpack_from("@Q", self._read)[0])

    @property
    def end(self) -> int:
        """Bytes written since the beginning."""
        return int(struct.unpack_from("@Q", self._written)[0])

    @property
    def waiting(self) -> int:
        """Bytes that were not read yet."""
        return self.end - self.position

    def close(self) -> None:
        self._lib.bpf_free_ringbuf(self._ring)
        self._read.close()
        self._written.close()


def wait_for_any(rings: list[Ring], timeout_s: float) -> None:
    """Waits until one of them has a record."""
    poll = select.poll()
    for ring in rings:
        poll.register(ring._descriptor, select.POLLIN)
    poll.poll(max(1, int(timeout_s * 1000)))
