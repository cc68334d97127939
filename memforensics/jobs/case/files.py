"""Files that a command writes for the user, and the folder for cases that nobody gave a name."""

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import chain, count
from pathlib import Path

from memforensics.errors import MemforensicsError, UsageError


def write_text(text: str, path: Path) -> None:
    """Writes the text to a file, mode 0600 when it is new: it tells about a production process. MemforensicsError when
    it cannot be written."""
    write_bytes(text.encode(), path)


def write_bytes(data: bytes, path: Path) -> None:
    """As `write_text`."""
    try:
        with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(data)
    except OSError as error:
        raise MemforensicsError(f"cannot write {path}", why=error.strerror or str(error)) from error


def check_output(path: Path) -> None:
    """UsageError when a file cannot be written there, as far as that shows before: nothing is made or changed."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder = path.resolve().parent
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {folder}")
        if path.is_file():
            os.close(os.open(path, os.O_WRONLY))
        elif path.exists():
            return  # a pipe or a device
        elif os.statvfs(folder).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        elif not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def case_path(pid: int, folder: Path | None = None) -> Path:
    """`memforensics-PID-TIME.case` in the folder (default: the state folder; MemforensicsError if there is none), with
    a number at the end if that file exists."""
    stem = f"memforensics-{pid}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = folder or state_folder()
    names = chain([f"{stem}.case"], (f"{stem}-{number}.case" for number in count(2)))
    return next(path for name in names if not os.path.lexists(path := folder / name))


def state_folder(env: Mapping[str, str] = os.environ, *, root_folder: Path = Path("/var/lib")) -> Path:
    """Where cases without a name of the user's are kept: $XDG_STATE_HOME/memforensics, else
    ~/.local/state/memforensics, for root without a home /var/lib/memforensics; where that cannot be written, a folder
    of this user in that of temporary files. It is made, mode 0700. MemforensicsError when none can be."""
    why = ""
    for folder in _candidates(env, root_folder):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if {folder.lstat().st_uid, folder.stat().st_uid} != {os.geteuid()}:
                why = why or f"{folder} belongs to another user"
                continue
            if folder.stat().st_mode & 0o077:
                folder.chmod(0o700)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
            why = why or f"{folder} cannot be written"
        except OSError as error:
            why = why or f"{folder}: {error.strerror or error}"
    raise MemforensicsError("there is no folder for a case", why=why, enable="--record FILE")


def _candidates(env: Mapping[str, str], root_folder: Path) -> Iterator[Path]:
    state, home = env.get("XDG_STATE_HOME", ""), env.get("HOME", "")
    if os.path.isabs(state):  # the XDG base directory specification: a relative path is to be ignored
        yield Path(state) / "memforensics"
    elif os.path.isabs(home) and home != "/" and _is_ours(home):
        yield Path(home) / ".local" / "state" / "memforensics"
    elif os.geteuid() == 0:
        yield root_folder / "memforensics"
    yield Path(tempfile.gettempdir()) / f"memforensics-{os.geteuid()}"


def _is_ours(folder: str) -> bool:
    """sudo may keep the HOME of the user who called it: what root writes there could be led astray by that user."""
    try:
        return os.stat(folder).st_uid == os.geteuid()
    except OSError:
        return False
