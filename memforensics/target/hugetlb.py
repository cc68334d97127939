"""Which mappings are of hugetlb pages. The kernel counts those apart from RSS (HugetlbPages in status), whatever they
are called: /anon_hugepage, a memfd, SysV shared memory, a file on a mounted hugetlbfs."""

import contextlib
import ctypes
from collections.abc import Sequence

from memforensics.case.model import Mapping
from memforensics.errors import MemforensicsError
from memforensics.target.process import Process

_HUGETLBFS_MAGIC = 0x958458F6  # uapi/linux/magic.h


def hugetlb_devices(process: Process, mappings: Sequence[Mapping]) -> frozenset[str]:
    """Devices, as maps spells them, whose files are of hugetlb pages. One file a device is asked; what may not be
    opened is known by its name alone."""
    example: dict[str, Mapping] = {}
    for mapping in mappings:
        if mapping.inode:
            known = example.setdefault(mapping.device, mapping)
            if mapping.path.startswith("/anon_hugepage") and known is not mapping:
                example[mapping.device] = mapping
    return frozenset(device for device, mapping in example.items() if _is_hugetlb(process, mapping))


def _is_hugetlb(process: Process, mapping: Mapping) -> bool:
    if mapping.path.startswith("/anon_hugepage"):
        return True
    with contextlib.suppress(OSError, MemforensicsError), process.open_mapped(mapping) as stream:
        about = (ctypes.c_long * 32)()  # struct statfs, 120 bytes: f_type comes first
        done = ctypes.CDLL(None, use_errno=True).fstatfs(stream.fileno(), about)
        return bool(done == 0 and about[0] & 0xFFFFFFFF == _HUGETLBFS_MAGIC)
    return False
