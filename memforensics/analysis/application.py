"""Whose code a Python frame is: the application's, the standard library's, an installed package's, or a launcher's.
Pure: by path and function, as the code objects have them."""

import re
from collections.abc import Sequence

# <prefix>/lib/python3.11/, Debian's /usr/lib/python3/dist-packages, lib64, python3.13t; zipped: python311.zip
_LIBRARY = re.compile(r"(?:^|/)(?:lib|lib64)/(?:python|pypy)\d(?:\.\d+t?)?/|(?:^|/)python\d+t?\.zip(?:/|$)")
# Where installers put packages; wheels and eggs that are imported as they are (pex, setuptools); PEP 582.
_PACKAGES = re.compile(r"(?:^|.*/)(?:(?:site|dist)-packages|[^/]+\.(?:whl|egg)|__pypackages__/[^/]+/lib)/")
_SCRIPTS = re.compile(r"(?:^|.*/)(?:s?bin|Scripts)/[^/]+")
_SOURCE = re.compile(r".*\.pyw?")
_GENERATED = re.compile(r"(?:.*\.)?(?:__\w+__|<lambda>)")
_STARTS_WORKERS = re.compile(r".*/(?:multiprocessing|concurrent/futures)/\w+\.py")
_RUNS_MODULES = re.compile(r"<frozen (?:runpy|importlib\.\w+|zipimport)>|.*/(?:runpy|importlib/_bootstrap\w*)\.py")
MODULE = "<module>"  # the function name of a module's own code


def is_application_file(path: str | None, stdlib_prefixes: Sequence[str] = ()) -> bool:
    """Whether code of this file is the application's: outside the standard library and site-packages.

    - `<frozen importlib._bootstrap>` and the like are the standard library's; so is `<attrs generated init ...>` the
      package's that made it: code without a file is nobody's application, except what a person gave to the
      interpreter itself: `<string>` (python -c, exec), `<stdin>` and a notebook's `<ipython-input-...>`.
    - A package installed in place (an editable install) lies outside site-packages: application. So is one of
      PYTHONPATH, and what `pip install --target` put elsewhere.
    - `stdlib_prefixes`: folders that the target says are its standard library.
    """
    if not path:
        return False
    if path.startswith("<"):
        return path in ("<string>", "<stdin>") or path.startswith("<ipython-input")
    if any(path.startswith(prefix.rstrip("/") + "/") for prefix in stdlib_prefixes if prefix):
        return False
    return _PACKAGES.match(path) is None and _LIBRARY.search(path) is None


def is_application(path: str | None, function: str | None, calls: str | None) -> bool:
    """Whether a Python frame is the application's. `calls`: the file of the Python code that it calls, None where it is
    the innermost Python frame.

    A file of the application may still only start others:

    - The script that an installer makes for a command (distlib, pip, uv, conda): a file without .py in bin or Scripts,
      whose module code calls a library's main(). A script of a person's own that does its work in functions, or calls
      other code of the application, is the application.
    - `python -c "from multiprocessing.spawn import spawn_main; ..."`, and other first lines of worker processes.

    dataclasses and namedtuples make their methods of `<string>`: these are the library's.
    """
    if not is_application_file(path):
        return False
    assert path is not None
    if function == MODULE and calls is not None:
        if path == "<string>" and _STARTS_WORKERS.fullmatch(calls):
            return False
        return not (_is_script(path) and not is_application_file(calls))
    if function == MODULE:
        return not _is_script(path)
    return not (path == "<string>" and _GENERATED.fullmatch(function or ""))


def is_launcher(path: str | None, function: str | None) -> bool:
    """Whether a frame that is not the application's only starts other code: the script of a command, runpy (python -m),
    and the import system."""
    if not path or (function == MODULE and (_is_script(path) or path == "<string>")):
        return True
    return _RUNS_MODULES.fullmatch(path) is not None


def package_path(path: str) -> str:
    """The path below the folder that Python imports packages from: starlette/responses.py, asyncio/events.py; of other
    files the name."""
    installed = _PACKAGES.match(path)
    if installed is not None:
        return path[installed.end() :]
    *_, below = _LIBRARY.split(path)
    return below if below != path else path.rpartition("/")[2]


def _is_script(path: str) -> bool:
    return _SCRIPTS.fullmatch(path) is not None and _SOURCE.fullmatch(path) is None
