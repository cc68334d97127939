"""The Python half of a stack: hands the kernel what it needs to walk a CPython process, and splices what it found."""

from collections.abc import Sequence

from memforensics.case.model import Frame, Stack
from memforensics.probes.ebpf.layout import PythonFrame
from memforensics.probes.ebpf.programs import MmapPrograms
from memforensics.symbols.space import AddressSpace
from memforensics.target import Process


class PythonSide:
    """Of one address space. Without a CPython in it, or without the kernel's Python walk, stacks stay native."""

    def __init__(self, process: Process, space: AddressSpace, programs: MmapPrograms) -> None:
        self._process, self._space, self._programs = process, space, programs

    def spliced(self, native: Sequence[tuple[Frame, ...]], python: Sequence[PythonFrame], complete: bool) -> Stack:
        return Stack(frames=tuple(frame for frames in native for frame in frames), complete=complete)

    def close(self) -> None:
        """The process left: the kernel need not know it any more."""
