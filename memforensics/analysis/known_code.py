"""Code that no leak is attributed to, and functions that tell how memory was requested. Pure.

KNOWN_CODE lists them, in one shape. To add a library or a runtime: add a line there, and a case to
tests/unit/test_known_code.py.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from memforensics.case.model import Frame
from memforensics.text import basename

Role = Literal[
    "libc",
    "allocator",  # a malloc of its own, or the C++ runtime, which has `operator new`
    "malloc-library",  # a malloc of its own
    "interpreter",  # CPython and its standard extension modules
    "call-through",  # calls a function for other code
    "runtime",  # functions of a language runtime, in whichever file they are linked
    "malloc",  # functions of libc's malloc
    "pymalloc",  # functions of CPython's object allocator
    "thread-start",  # libc functions that start a thread
    "v8",  # functions with which V8 maps its heap
    "worker-start",  # Python files that start worker processes
    "module-runner",  # Python files that only run or import other modules
]
PLUMBING: frozenset[Role] = frozenset({"libc", "allocator", "interpreter", "call-through", "runtime"})


@dataclass(frozen=True, slots=True)
class KnownCode:
    """A native frame has these roles if its file name and its function match. A Python frame has them if its path
    matches. The patterns match the whole text; None matches anything."""

    roles: tuple[Role, ...]
    file: str | None = None  # file name of the mapped object
    path: str | None = None  # of the mapped object, or of the Python file
    function: str | None = None
    python: bool = False


_LIBC = r"lib(c|pthread|dl|rt|m|util|resolv)[-.].*so.*|ld[-.].*so.*|ld-linux.*|ld-musl.*|libc\.musl.*|\[vdso\]"
_MALLOC = (
    r"(__libc_)?(malloc|calloc|realloc|reallocarray|memalign|posix_memalign|aligned_alloc|valloc|pvalloc)"
    r"|_int_(malloc|realloc|memalign)|sysmalloc(_mmap)?|new_heap|alloc_new_heap|grow_heap|arena_get2?|ptmalloc_init"
    r"|operator new.*|_Zn[wa].*|(__)?s?brk|__default_morecore|__libc_sbrk"
)
KNOWN_CODE: tuple[KnownCode, ...] = (
    KnownCode(("libc",), file=_LIBC),
    KnownCode(("malloc",), file=_LIBC, function=_MALLOC),
    KnownCode(("thread-start",), file=_LIBC, function=r"(__)?pthread_create(@.*)?|allocate_(thread_)?stack"),
    KnownCode(
        ("allocator", "malloc-library"),
        file=r"lib(jemalloc|tcmalloc|tcmalloc_minimal|mimalloc|tbbmalloc|tbbmalloc_proxy|snmalloc.*|hoard)[-._].*so.*",
    ),
    KnownCode(("allocator",), file=r"lib(stdc\+\+|gcc_s|c\+\+|c\+\+abi)[-.].*so.*"),
    KnownCode(("call-through",), file=r"libffi[-.].*so.*"),  # for ctypes and cffi
    KnownCode(("interpreter",), file=r"(lib)?python[23](\.\d+)?[a-z]*([-.].*)?"),
    KnownCode(("interpreter",), path=r".*/lib-dynload/.*"),
    KnownCode(("interpreter",), function=r"_?Py[A-Z_]\w*|py[a-z]+_[a-z]\w*"),
    KnownCode(
        ("pymalloc",), function=r"_PyMem_ArenaAlloc|_PyObject_Arena(Mmap|Malloc)|new_arena|allocate_from_new_pool"
    ),
    KnownCode(("runtime",), function=r"runtime\.[A-Za-z_(]\S*"),  # Go
    KnownCode(("runtime",), file=r"libjvm\.so", function=r"os::\w+(::\w+)*\(.*|AllocateHeap\(.*"),
    KnownCode(("v8",), function=r"(.* )?v8::(base|internal)::.*"),
    KnownCode(("worker-start",), python=True, path=r".*/(multiprocessing|concurrent/futures)/\w+\.py"),
    KnownCode(
        ("module-runner",),
        python=True,
        path=r"<frozen (runpy|importlib\.\w+|zipimport)>|.*/(runpy|importlib/_bootstrap\w*)\.py",
    ),
)


def native_roles(frame: Frame) -> frozenset[Role]:
    """The roles of the code of a native or hook frame; none for a Python frame."""
    if frame.kind == "python" or frame.module is None:
        return frozenset()
    return _roles(frame.module, frame.function or "", python=False)


def python_roles(path: str) -> frozenset[Role]:
    """The roles of a Python file."""
    return _roles(path, "", python=True)


@lru_cache(maxsize=4096)
def _roles(path: str, function: str, *, python: bool) -> frozenset[Role]:
    texts = {"file": basename(path), "path": path, "function": function}
    return frozenset(
        role
        for code in KNOWN_CODE
        if code.python == python and all(_matches(getattr(code, name), text) for name, text in texts.items())
        for role in code.roles
    )


def _matches(pattern: str | None, text: str) -> bool:
    return pattern is None or re.fullmatch(pattern, text) is not None
