"""Files that commands write, and the folder for cases to which the user gave no name."""

import errno
import os
import tempfile
from collections.abc import Iterator
from datetime import datetime
from itertools import chain, count
from pathlib import Path

import platformdirs

from memforensics.errors import MemforensicsError, UsageError

APP = "memforensics"
ROOT_STATE = Path("/var/lib")  # for root without a home


def write_text(text: str, path: Path) -> None:
    """Writes text to a file; a new file gets mode 0600, because it describes a production process. MemforensicsError if
    that fails."""
    write_bytes(text.encode(), path)


def write_bytes(data: bytes, path: Path) -> None:
    """As `write_text`."""
    try:
        with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(data)
    except OSError as error:
        raise MemforensicsError(f"cannot write {path}", why=error.strerror or str(error)) from error


def check_output(path: Path) -> None:
    """UsageError if it is already clear that the file cannot be written. Makes and changes nothing."""
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


def state_folder() -> Path:
    """The folder for cases without a name: $XDG_STATE_HOME/memforensics, else ~/.local/state/memforensics; for root
    without a home /var/lib/memforensics. If that cannot be written, a folder of this user among the temporary files.
    Makes it with mode 0700. MemforensicsError if none can be made."""
    why = ""
    for folder in _candidates():
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


def _candidates() -> Iterator[Path]:
    dirs = platformdirs.PlatformDirs(APP, appauthor=False)
    if dirs.user_state_path.is_absolute() and (os.path.isabs(os.environ.get("XDG_STATE_HOME", "")) or _has_home()):
        yield dirs.user_state_path
    elif os.geteuid() == 0:
        yield ROOT_STATE / APP
    yield Path(tempfile.gettempdir()) / f"{APP}-{os.geteuid()}"


def _has_home() -> bool:
    """Whether HOME is ours. sudo may keep the HOME of its caller, who could redirect what root writes there."""
    home = os.environ.get("HOME", "")
    try:
        return os.path.isabs(home) and home != "/" and os.stat(home).st_uid == os.geteuid()
    except OSError:
        return False
