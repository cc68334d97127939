"""Where separate debug files lie (gdb manual, "Separate Debug Files"): on this machine and in the target's own root.
Nothing is downloaded. The build ID shows whether a file is the right one."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from memforensics.symbols.elf.reader import DebugFiles

DEBUG_ROOTS = (Path("/usr/lib/debug"),)

OpenInRoot = Callable[[str], AbstractContextManager[BinaryIO]]
"""Opens a path as a process of another root directory would: `target.rooted.open_in_root` with its root."""


def debug_files_for(path: str, roots: Sequence[Path] = DEBUG_ROOTS, *, inside: Sequence[OpenInRoot] = ()) -> DebugFiles:
    """Candidates for the library at `path`, as the target sees it: below `roots` of this host, by build ID and by
    .gnu_debuglink; then the same `inside` the roots of the target, and in the library's own folder there."""
    folder = PurePosixPath(path.lstrip("/")).parent

    def candidates(build_id: str, debug_link: str | None) -> Iterator[AbstractContextManager[BinaryIO]]:
        by_id = f".build-id/{build_id[:2]}/{build_id[2:]}.debug"
        link = debug_link if debug_link is not None and ".." not in folder.parts else None
        for root in roots:
            yield open_regular(root / by_id)
            if link is not None:
                yield open_regular(root / folder / link)
        for opened in inside:
            yield opened(f"usr/lib/debug/{by_id}")
            if link is not None:
                for place in (f"{folder}/{link}", f"{folder}/.debug/{link}", f"usr/lib/debug/{folder}/{link}"):
                    yield opened(place)

    return candidates


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """O_NONBLOCK: a FIFO of that name must not hang us."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as stream:
        yield stream
