"""Whose code a Python file is: the application's, or the standard library's or an installed package's. Pure."""

import re
from collections.abc import Sequence

# <prefix>/lib/python3.11/, Debian's /usr/lib/python3/dist-packages, lib64, python3.13t; zipped: python311.zip
_LIBRARY = re.compile(r"(?:^|/)(?:lib|lib64)/(?:python|pypy)\d(?:\.\d+t?)?/|(?:^|/)python\d+t?\.zip(?:/|$)")
_PACKAGES = ("/site-packages/", "/dist-packages/")


def is_application_file(path: str | None, stdlib_prefixes: Sequence[str] = ()) -> bool:
    """Whether code of this file is the application's: outside the standard library and site-packages.

    - `<frozen importlib._bootstrap>` and the like are the standard library's; so is `<attrs generated init ...>` the
      package's that made it: code without a file is nobody's application, except what a person gave to the
      interpreter itself: `<string>` (python -c, exec), `<stdin>` and a notebook's `<ipython-input-...>`.
    - A package installed in place (an editable install) lies outside site-packages: application.
    - `stdlib_prefixes`: folders that the target says are its standard library.
    """
    if not path:
        return False
    if path.startswith("<"):
        return path in ("<string>", "<stdin>") or path.startswith("<ipython-input")
    if any(path.startswith(prefix.rstrip("/") + "/") for prefix in stdlib_prefixes if prefix):
        return False
    return not any(folder in path for folder in _PACKAGES) and _LIBRARY.search(path) is None
