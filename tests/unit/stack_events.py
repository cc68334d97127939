"""Stacks as the kernel reports them, for tables of sites."""

from typing import Any

from memforensics.case.model import Stack
from memforensics.probes.ebpf.loader.layout import Ended, Kind, NativePc, StackEvent
from memforensics.probes.ebpf.mmap.allocation_table import AllocationTable
from memforensics.probes.ebpf.stacks.sites import DecodedStack


def decoded(pc: int = 0, *, complete: bool = True) -> DecodedStack:
    """A stack of one frame, without a name."""
    names = Stack(frames=(), complete=complete)
    return DecodedStack((NativePc(pc, False, False),), (), complete, lambda: names, lambda stack: (stack, True))


def add_site(table: AllocationTable, site: int, pc: int | None = None, *, complete: bool = True, **more: Any) -> None:
    """The kernel's site of that number, whose stack is the address `pc`; by default its number."""
    stack = decoded(site if pc is None else pc, complete=complete)
    fields = {"kind": Kind.mmap, "shared": False, "file_backed": False, **more}
    event = StackEvent(
        space=7,
        tid=1,
        t_ns=0,
        site=site,
        ended=Ended.COMPLETE if complete else Ended.MISS,
        native=stack.native,
        python=(),
        python_flags=0,
        **fields,
    )
    table.add_site(event, stack)
