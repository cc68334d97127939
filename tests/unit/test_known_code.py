"""Frames and Python files of known code. Names as real processes show them."""

import pytest

from memforensics.analysis.known_code import KNOWN_CODE, Role, native_roles, python_roles
from memforensics.case.model import Frame

LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"


@pytest.mark.parametrize(
    ("module", "function", "roles"),
    [
        (LIBC, "mmap", {"libc"}),
        ("/lib64/ld-linux-x86-64.so.2", None, {"libc"}),
        ("/lib/ld-musl-x86_64.so.1", None, {"libc"}),
        ("[vdso]", None, {"libc"}),
        (LIBC, "malloc", {"libc", "malloc"}),
        (LIBC, "_int_malloc", {"libc", "malloc"}),
        (LIBC, "pthread_create@GLIBC_2.2.5", {"libc", "thread-start"}),
        ("/usr/lib/libjemalloc.so.2", "je_malloc", {"allocator", "malloc-library"}),
        ("/opt/lib/libtcmalloc_minimal.so.4.5.9", None, {"allocator", "malloc-library"}),
        ("/usr/lib/x86_64-linux-gnu/libstdc++.so.6", "operator new(unsigned long)", {"allocator"}),
        ("/usr/lib/libffi.so.8.1.2", None, {"call-through"}),
        ("/usr/bin/python3.11", None, {"interpreter"}),
        ("/opt/py/lib/libpython3.12.so.1.0 (deleted)", None, {"interpreter"}),
        ("/opt/py/lib/python3.11/lib-dynload/mmap.cpython-311-x86_64-linux-gnu.so", None, {"interpreter"}),
        ("/opt/tool/bin/embeds", "PyEval_EvalCode", {"interpreter"}),
        ("/usr/bin/python3.11", "_PyObject_ArenaMmap", {"interpreter", "pymalloc"}),
        ("/srv/bin/gateway", "runtime.sysMap", {"runtime"}),
        ("/opt/jdk/lib/server/libjvm.so", "os::commit_memory(char*, unsigned long, bool)", {"runtime"}),
        ("/usr/bin/node", "v8::base::OS::Allocate(void*)", {"v8"}),
        ("/srv/lib/libpool.so.1", "malloc", set()),
        ("/opt/lib/libcrypto.so.3", None, set()),
        ("/opt/lib/libmlx5.so.1", None, set()),
        ("/srv/lib/other.so", "os::commit_memory()", set()),
    ],
)
def test_roles_of_a_native_frame(module: str, function: str | None, roles: set[Role]) -> None:
    assert native_roles(Frame(kind="native", module=module, function=function)) == roles


@pytest.mark.parametrize(
    ("path", "roles"),
    [
        ("/usr/lib/python3.11/multiprocessing/spawn.py", {"worker-start"}),
        ("/usr/lib/python3.11/concurrent/futures/process.py", {"worker-start"}),
        ("<frozen runpy>", {"module-runner"}),
        ("/usr/lib/python3.8/runpy.py", {"module-runner"}),
        ("<frozen importlib._bootstrap>", {"module-runner"}),
        ("/srv/app/server.py", set()),
        ("/usr/lib/libjemalloc.so.2", set()),
    ],
)
def test_roles_of_a_python_file(path: str, roles: set[Role]) -> None:
    assert python_roles(path) == roles


def test_each_entry_restricts_something() -> None:
    assert all(code.file or code.path or code.function for code in KNOWN_CODE)


def test_a_python_frame_has_no_native_roles() -> None:
    assert native_roles(Frame(kind="python", file="/usr/lib/python3.11/threading.py", function="_PyRun")) == set()
