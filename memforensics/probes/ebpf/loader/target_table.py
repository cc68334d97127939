"""The table of traced processes, as the programs look it up (stacks.bpf.h, target_of)."""

import struct

from memforensics.probes.ebpf.loader.engine import Engine

SLOTS = 4096  # a power of two
_INDEX = struct.Struct("<I")
_PID = struct.Struct("<I")
_SLOT_TAIL = struct.Struct("<II")  # tgid, unused; after the target
_OVERFLOWED = struct.pack("<Q", 1)


class TargetTable:
    """Processes and what the kernel keeps of each. A process takes its slot, which only user space fills, when that is
    free. Else it goes into the hash, as the children do that the kernel's programs add."""

    def __init__(self, engine: Engine, target: struct.Struct) -> None:
        self._size = target.size
        self._table = engine.table("targets", _PID, target)
        self._slots = engine.raw_table("slots", _INDEX.size, target.size + _SLOT_TAIL.size)
        self._slot_overflow = engine.raw_table("slot_overflow", _INDEX.size, len(_OVERFLOWED))

    def add(self, pid: int, target: bytes) -> bool:
        """False: the table is full."""
        at, key = _INDEX.pack(pid % SLOTS), _PID.pack(pid)
        if self._slot(pid)[1] not in (0, pid):
            return self._slot_overflow.put(at, _OVERFLOWED) and self._table.put(key, target)
        for owner in (0, pid):  # no program may see half of it
            self._slots.put(at, target + _SLOT_TAIL.pack(owner, 0))
        self._table.remove(key)  # where a fork had added it
        return True

    def get(self, pid: int) -> bytes | None:
        """None: it is not traced."""
        target, owner = self._slot(pid)
        return target if owner == pid else self._table.get(_PID.pack(pid))

    def remove(self, pid: int) -> None:
        target, owner = self._slot(pid)
        if owner == pid:
            self._slots.put(_INDEX.pack(pid % SLOTS), target + _SLOT_TAIL.pack(0, 0))
        self._table.remove(_PID.pack(pid))

    def _slot(self, pid: int) -> tuple[bytes, int]:
        """The content of the slot that belongs to this PID, and the PID that holds it (0: it is free)."""
        value = self._slots.get(_INDEX.pack(pid % SLOTS)) or bytes(self._size + _SLOT_TAIL.size)
        owner, _ = _SLOT_TAIL.unpack_from(value, self._size)
        return value[: self._size], owner
