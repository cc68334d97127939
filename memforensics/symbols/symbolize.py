"""Frames for people: function, file and line of a native address."""

from memforensics.case.model import Frame
from memforensics.symbols.space import AddressSpace, MappedModule
from memforensics.symbols.unwind import UnwoundFrame


class Symbolizer:
    """Symbolizes addresses of one address space. `lines_budget_s`: all the time that reading DWARF lines may take."""

    def __init__(self, space: AddressSpace, *, lines_budget_s: float = 2.0) -> None:
        raise NotImplementedError

    def frame(
        self, module: MappedModule | None, vaddr: int | None, guessed: bool = False, *, is_return: bool = True
    ) -> Frame:
        """A native Frame. `vaddr` is the address in the module's file; of a return address the byte before is looked
        up (is_return), `offset` stays the address itself. function is None where no symbol covers it."""
        raise NotImplementedError

    def frame_at(self, pc: int, guessed: bool = False, *, is_return: bool = True) -> Frame:
        """The same by run-time pc."""
        raise NotImplementedError

    def unwound(self, frame: UnwoundFrame) -> Frame:
        """The same of an unwound frame."""
        raise NotImplementedError
