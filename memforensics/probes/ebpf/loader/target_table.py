"""Who is traced, as the programs look it up (stacks.bpf.h, target_of)."""

import struct

from memforensics.probes.ebpf.loader.engine import Engine

SLOTS = 4096  # a power of two
_INDEX = struct.Struct("<I")
_PID = struct.Struct("<I")
_SLOT_TAIL = struct.Struct("<II")  # tgid, unused; after the target
_ANY = struct.pack("<Q", 1)


class Targets:
    """Processes and what the kernel keeps of each: in a slot where that is free, which only user space fills; else in a
    table, as the children that the kernel's programs enter."""

    def __init__(self, engine: Engine, target: struct.Struct) -> None:
        self._size = target.size
        self._table = engine.table("targets", _PID, target)
        self._slots = engine.raw_table("slots", _INDEX.size, target.size + _SLOT_TAIL.size)
        self._slot_overflow = engine.raw_table("slot_overflow", _INDEX.size, len(_ANY))

    def enter(self, pid: int, target: bytes) -> bool:
        """False: the table is full."""
        at, key = _INDEX.pack(pid % SLOTS), _PID.pack(pid)
        if self._slot(pid)[1] not in (0, pid):
            return self._slot_overflow.put(at, _ANY) and self._table.put(key, target)
        for owner in (0, pid):  # nobody may see half of it
            self._slots.put(at, target + _SLOT_TAIL.pack(owner, 0))
        self._table.remove(key)  # where a fork had entered it
        return True

    def get(self, pid: int) -> bytes | None:
        """None: it is not traced (any more)."""
        target, owner = self._slot(pid)
        return target if owner == pid else self._table.get(_PID.pack(pid))

    def remove(self, pid: int) -> None:
        target, owner = self._slot(pid)
        if owner == pid:
            self._slots.put(_INDEX.pack(pid % SLOTS), target + _SLOT_TAIL.pack(0, 0))
        self._table.remove(_PID.pack(pid))

    def _slot(self, pid: int) -> tuple[bytes, int]:
        """What is in the slot that would be its own, and whose it is (0: nobody's)."""
        value = self._slots.get(_INDEX.pack(pid % SLOTS)) or bytes(self._size + _SLOT_TAIL.size)
        owner, _ = _SLOT_TAIL.unpack_from(value, self._size)
        return value[: self._size], owner
