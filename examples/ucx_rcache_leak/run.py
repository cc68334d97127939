#!/usr/bin/env python3
"""A small inference service on the real UCX, which leaks. It runs in a virtual environment that this script creates.

    python3 examples/ucx_rcache_leak/run.py --seconds 60                  leaks about 106 MiB a minute
    python3 examples/ucx_rcache_leak/run.py --ucx-version 1.21.0          the same program, without the leak
    UCX_RCACHE_MAX_UNRELEASED=1024 python3 examples/ucx_rcache_leak/run.py        no leak

All other options are those of the service (service.py --help). The environment is kept in the XDG cache folder
(~/.cache/memforensics, or --cache) and reused. It needs Python 3.10 or newer with venv, and nothing else.
"""

import argparse
import fcntl
import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
DISTRIBUTION = "libucx-cu12"


def default_cache() -> Path:
    """$XDG_CACHE_HOME/memforensics, ~/.cache/memforensics, for root also /var/cache/memforensics: the first one that no
    other user can write to. If there is none, a new temporary folder for this run."""
    bases = [os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")]
    bases += ["/var/cache"] if os.geteuid() == 0 else []
    for base in bases:
        cache = Path(base) / "memforensics"
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.access(cache, os.W_OK) and not others_can_write(cache):
                return cache
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="memforensics-"))


def others_can_write(folder: Path) -> str | None:
    """Why another user can write a program there. None if only root and this user can."""
    for place in (folder.resolve(), *folder.resolve().parents):
        about = place.stat()
        if about.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to user {about.st_uid}"
        if about.st_mode & 0o022 and not about.st_mode & stat.S_ISVTX:
            return f"{place} is writable by others"
    return None


def environment(ucx_version: str, cache: Path) -> Path:
    """The Python of a virtual environment with this UCX, which is created if it is missing. SystemExit with one clear
    line if that fails."""
    # One per base interpreter: an environment does not work with another Python.
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-{hashlib.sha256(os.fsencode(base)).hexdigest()[:8]}"
    folder = cache / f"ucx-{ucx_version}-{tag}"
    python, stamp = folder / "bin" / "python", folder / "complete"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    for place in (cache, folder):  # a program in it is about to run
        why = others_can_write(place) if place.exists() else None
        if why is not None:
            sys.exit(f"will not run a program from {place}: {why}\n  do: --cache with a folder of your own")
    if stamp.exists() and os.access(python, os.X_OK):
        return python
    with open(cache / f"{folder.name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second run waits and then finds the environment
        if stamp.exists() and os.access(python, os.X_OK):
            return python
        print(f"creating {folder} with {DISTRIBUTION} {ucx_version} (only once) ...", file=sys.stderr, flush=True)
        try:
            venv.EnvBuilder(clear=True, symlinks=True, with_pip=True).create(folder)
        except (subprocess.CalledProcessError, OSError) as error:
            sys.exit(f"cannot create a virtual environment in {folder}: {error}\n  do: apt-get install python3-venv")
        # No build isolation, no other packages: exactly this wheel.
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*pip, "--only-binary=:all:", f"{DISTRIBUTION}=={ucx_version}"], stdout=sys.stderr, check=False
        )
        if done.returncode:
            sys.exit(f"pip could not install {DISTRIBUTION} {ucx_version} (exit code {done.returncode})")
        stamp.touch()
    return python


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--ucx-version", default="1.19.0", metavar="V", help="which UCX (default %(default)s)")
    parser.add_argument("--cache", type=Path, default=None, metavar="DIR", help="where environments are kept")
    parser.add_argument("--prepare", action="store_true", help="only create the environment and print its Python")
    own, service = parser.parse_known_args()
    python = environment(own.ucx_version, own.cache or default_cache())
    if own.prepare:
        print(python)
        return
    os.execv(python, [str(python), "-u", str(HERE / "service.py"), *service])


if __name__ == "__main__":
    main()
