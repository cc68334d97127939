"""Files in another root directory (of a container or an unpacked image), opened as a process inside would."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_MAX_LINKS = 40  # the kernel's own limit (include/linux/namei.h, MAXSYMLINKS)
_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def open_in_root(root: Path, path: str, *, follow_last: bool = True) -> Iterator[BinaryIO]:
    """A regular file below `root`. All links are resolved inside it, absolute ones and `..` included, as openat2(2)
    does with RESOLVE_IN_ROOT, which Python does not offer. Only a regular file is opened, so that no device or FIFO can
    act on us. OSError as from open; ELOOP if the last name is a link and `follow_last` is off."""
    with contextlib.ExitStack() as opened:
        at = _walk(root, path, opened, follow_last)
        if not stat.S_ISREG(os.fstat(at).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        with open(os.open(f"/proc/self/fd/{at}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as stream:
            yield stream


def _walk(root: Path, path: str, opened: contextlib.ExitStack, follow_last: bool) -> int:
    """An O_PATH descriptor of the file. `opened` closes all descriptors of the walk."""
    folders = [os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
    opened.callback(os.close, folders[0])
    waiting = path.split("/")[::-1]
    links = 0
    while waiting:
        name = waiting.pop()
        if name in ("", "."):
            continue
        if name == "..":
            del folders[max(1, len(folders) - 1) :]
            continue
        found = os.open(name, _FLAGS, dir_fd=folders[-1])
        opened.callback(os.close, found)
        mode = os.fstat(found).st_mode
        if stat.S_ISLNK(mode):
            links += 1
            if links > _MAX_LINKS or (not follow_last and not any(waiting)):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            link = os.readlink("", dir_fd=found)
            if link.startswith("/"):
                del folders[1:]
            waiting.extend(link.split("/")[::-1])
        elif stat.S_ISDIR(mode):
            folders.append(found)
        elif any(part not in ("", ".") for part in waiting):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        else:
            return found
    return folders[-1]
