"""Mappings of hugetlb pages. The kernel counts those apart from RSS (HugetlbPages in status), under any name:
/anon_hugepage, a memfd, SysV shared memory, a file on a mounted hugetlbfs."""

import contextlib
import ctypes
from collections.abc import Iterable

from memforensics.case.model import Mapping
from memforensics.errors import MemforensicsError
from memforensics.target.pagemap import PAGE
from memforensics.target.process import Process
from memforensics.target.procmap import ProcMap

_HUGETLBFS_MAGIC = 0x958458F6  # uapi/linux/magic.h


def hugetlb_devices(process: Process, mappings: Iterable[Mapping]) -> frozenset[str]:
    """Devices, as in maps, whose files have hugetlb pages. One mapping of each device is tested: by its page size
    (Linux 6.11+), by its file system, or by its name if its file may not be opened."""
    example: dict[str, Mapping] = {}
    for mapping in mappings:
        if mapping.path and mapping.device != "00:00":
            known = example.setdefault(mapping.device, mapping)
            if mapping.path.startswith("/anon_hugepage") and known is not mapping:
                example[mapping.device] = mapping
    return frozenset(device for device, mapping in example.items() if _is_hugetlb(process, mapping))


def _is_hugetlb(process: Process, mapping: Mapping) -> bool:
    if mapping.path.startswith("/anon_hugepage"):
        return True
    with contextlib.suppress(OSError, MemforensicsError), ProcMap(process.pid, process.proc) as procmap:
        found = procmap.at(mapping.start)
        return found is not None and found[1] > PAGE
    with contextlib.suppress(OSError, MemforensicsError), process.open_mapped(mapping) as stream:
        about = (ctypes.c_long * 32)()  # struct statfs, 120 bytes: f_type comes first
        done = ctypes.CDLL(None, use_errno=True).fstatfs(stream.fileno(), about)
        return bool(done == 0 and about[0] & 0xFFFFFFFF == _HUGETLBFS_MAGIC)
    return False
