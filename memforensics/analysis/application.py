"""Whether a Python frame is code of the application, of the standard library, of an installed package, or a launcher.
By the path and function of its code object. Pure."""

import re
from collections.abc import Sequence

from memforensics.analysis.known_code import python_roles

# <prefix>/lib/python3.11/, Debian's /usr/lib/python3/dist-packages, lib64, python3.13t; zipped: python311.zip
_LIBRARY = re.compile(r"(?:^|/)(?:lib|lib64)/(?:python|pypy)\d(?:\.\d+t?)?/|(?:^|/)python\d+t?\.zip(?:/|$)")
# Installed packages, wheels and eggs that are imported without installation (pex, setuptools), and PEP 582 folders.
_PACKAGES = re.compile(r"(?:^|.*/)(?:(?:site|dist)-packages|[^/]+\.(?:whl|egg)|__pypackages__/[^/]+/lib)/")
_SCRIPTS = re.compile(r"(?:^|.*/)(?:s?bin|Scripts)/[^/]+")
_SOURCE = re.compile(r".*\.pyw?")
_GENERATED = re.compile(r"(?:.*\.)?(?:__\w+__|<lambda>)")
MODULE = "<module>"  # the function name of module code


def is_application_file(path: str | None, stdlib_prefixes: Sequence[str] = ()) -> bool:
    """Whether this file is outside the standard library and site-packages.

    - Code without a file is not the application's: `<frozen importlib._bootstrap>` belongs to the standard library,
      `<attrs generated init ...>` to the package that made it. Exceptions are `<string>` (python -c, exec), `<stdin>`
      and `<ipython-input-...>` of a notebook.
    - An editable install, a package of PYTHONPATH, and one installed with `pip install --target` are outside
      site-packages and count as the application.
    - `stdlib_prefixes`: the folders of the target's standard library.
    """
    if not path:
        return False
    if path.startswith("<"):
        return path in ("<string>", "<stdin>") or path.startswith("<ipython-input")
    if any(path.startswith(prefix.rstrip("/") + "/") for prefix in stdlib_prefixes if prefix):
        return False
    return _PACKAGES.match(path) is None and _LIBRARY.search(path) is None


def is_application(path: str | None, function: str | None, calls: str | None) -> bool:
    """Whether a Python frame is the application's. `calls`: the file of the Python code that it calls, None for the
    innermost Python frame.

    Files outside the libraries that only start other code are not the application:

    - The script that an installer makes for a command (distlib, pip, uv, conda): a file in bin or Scripts without .py,
      whose module code calls main() of a library. A script that does its work in functions, or calls other application
      code, is the application.
    - `python -c "from multiprocessing.spawn import spawn_main; ..."` and other start code of worker processes.

    Methods that dataclasses and namedtuples generate (file `<string>`) belong to the library.
    """
    if not is_application_file(path):
        return False
    assert path is not None
    if function == MODULE and calls is not None:
        if path == "<string>" and "worker-start" in python_roles(calls):
            return False
        return not (_is_script(path) and not is_application_file(calls))
    if function == MODULE:
        return not _is_script(path)
    return not (path == "<string>" and _GENERATED.fullmatch(function or ""))


def is_launcher(path: str | None, function: str | None) -> bool:
    """Whether a frame outside the application only starts other code: a command's script, runpy (python -m), or the
    import system."""
    if not path or (function == MODULE and (_is_script(path) or path == "<string>")):
        return True
    return "module-runner" in python_roles(path)


def package_path(path: str) -> str:
    """The path relative to the folder of packages or the standard library: starlette/responses.py, asyncio/events.py.
    For other files: the name."""
    installed = _PACKAGES.match(path)
    if installed is not None:
        return path[installed.end() :]
    *_, below = _LIBRARY.split(path)
    return below if below != path else path.rpartition("/")[2]


def _is_script(path: str) -> bool:
    return _SCRIPTS.fullmatch(path) is not None and _SOURCE.fullmatch(path) is None
