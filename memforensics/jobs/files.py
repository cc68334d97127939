"""Files that a command writes for the user."""

import os
from pathlib import Path

from memforensics.errors import MemforensicsError


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
