"""The frame that is named, and frames inside an interposer. Stacks as real programs have them."""

import pytest

from memforensics.analysis.frames import caller_of, culprit_frame, is_plumbing, layer_of, mark_hooks
from memforensics.case.model import AllocationSite, Frame, Hook, Stack

LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"
PYTHON = "/usr/bin/python3.11"


def native(module: str, function: str | None) -> Frame:
    return Frame(kind="native", module=module, function=function)


def python(file: str, function: str, line: int = 1) -> Frame:
    return Frame(kind="python", file=file, function=function, line=line)


def hook(function: str, owner: str, target: str) -> Hook:
    return Hook(pid=1, function=function, mechanism="inline", owner_path=owner, target_function=target)


INTERPOSER = "/opt/net/libintercept.so.2"
POOLS = "/opt/net/libpools.so.2"
HOOKS = [hook("mmap", INTERPOSER, "override_mmap"), hook("munmap", INTERPOSER, "override_munmap")]
INSIDE_MUNMAP = Stack(
    frames=(
        native(LIBC, "syscall"),
        native(INTERPOSER, "orig_mmap"),
        native(INTERPOSER, "override_mmap"),
        native(POOLS, "pool_grow"),
        native(INTERPOSER, "dispatch"),
        native(INTERPOSER, "override_munmap"),
        native("/usr/lib/python3.11/lib-dynload/mmap.cpython-311-x86_64-linux-gnu.so", None),
        python("/srv/app/server.py", "handle", 12),
        native(PYTHON, "Py_BytesMain"),
    )
)
PASSED_THROUGH = Stack(
    frames=(
        native(LIBC, "syscall"),
        native(INTERPOSER, "orig_mmap"),
        native(INTERPOSER, "override_mmap"),
        native("/usr/lib/python3.11/lib-dynload/mmap.cpython-311-x86_64-linux-gnu.so", None),
        python("/usr/lib/python3.11/tempfile.py", "mapped", 3),
        python("/srv/app/server.py", "handle", 12),
    )
)


def test_memory_mapped_inside_munmap_belongs_to_the_interposer() -> None:
    stack, inside = mark_hooks(INSIDE_MUNMAP, HOOKS)
    assert inside == "munmap"
    assert [f.kind for f in stack.frames].count("hook") == 4
    named = culprit_frame(stack.frames, inside)
    assert named is not None
    assert (named.module, named.function) == (POOLS, "pool_grow")


def test_an_interposer_that_passes_a_call_through_is_not_named() -> None:
    stack, inside = mark_hooks(PASSED_THROUGH, HOOKS)
    assert inside is None
    named = culprit_frame(stack.frames, inside)
    assert named is not None
    assert named.function == "mapped"


def test_an_interposer_that_keeps_memory_is_named() -> None:
    frames = tuple(f for f in INSIDE_MUNMAP.frames if f.module != POOLS)
    stack, inside = mark_hooks(Stack(frames=frames), HOOKS)
    named = culprit_frame(stack.frames, inside)
    assert inside == "munmap"
    assert named is not None
    assert named.module == INTERPOSER


def test_the_outermost_freeing_call_counts() -> None:
    """free() of a large block unmaps it: both are hooked, and the program called free."""
    hooks = [*HOOKS, hook("free", INTERPOSER, "override_free")]
    frames = (*INSIDE_MUNMAP.frames[:6], native(LIBC, None), native(INTERPOSER, "override_free"))
    _, inside = mark_hooks(Stack(frames=(*frames, *INSIDE_MUNMAP.frames[6:])), hooks)
    assert inside == "free"


def test_without_hooks_nothing_is_inside() -> None:
    assert mark_hooks(INSIDE_MUNMAP, []) == (INSIDE_MUNMAP, None)


def test_the_caller_is_the_applications_innermost_function() -> None:
    caller = caller_of(PASSED_THROUGH.frames)
    assert caller is not None
    assert (caller.function, caller.file, caller.line) == ("handle", "/srv/app/server.py", 12)


SITE = "/opt/venv/lib/python3.11/site-packages"
LAUNCHED = (
    python(f"{SITE}/uvicorn/server.py", "Server.run", 66),
    python(f"{SITE}/uvicorn/main.py", "main", 412),
    python("/opt/venv/bin/uvicorn", "<module>", 8),
)


def test_without_application_code_the_innermost_python_function_is_the_caller() -> None:
    caller = caller_of([python("/usr/lib/python3.11/tempfile.py", "mapped", 3)])
    assert caller is not None
    assert (caller.function, caller.application) == ("mapped", False)


def test_a_launcher_is_never_the_caller() -> None:
    rendered = (python(f"{SITE}/starlette/responses.py", "JSONResponse.render", 200), *LAUNCHED)
    caller = caller_of(rendered)
    assert caller is not None
    assert (caller.function, caller.line, caller.application) == ("JSONResponse.render", 200, False)
    handled = caller_of((python("/srv/app.py", "handle", 7), *rendered))
    assert handled is not None
    assert (handled.function, handled.application) == ("handle", True)
    assert caller_of(LAUNCHED[-1:]) is None


def test_a_worker_process_is_not_named_by_what_spawned_it() -> None:
    spawned = (
        python("/usr/lib/python3.11/multiprocessing/spawn.py", "spawn_main", 122),
        python("<string>", "<module>", 1),
    )
    caller = caller_of((*LAUNCHED[:2], *spawned))
    assert caller is not None
    assert (caller.function, caller.application) == ("Server.run", False)


@pytest.mark.parametrize(
    ("module", "function", "plumbing"),
    [
        (LIBC, "mmap", True),
        (PYTHON, "_PyEval_EvalFrameDefault", True),
        ("/srv/venv/lib/python3.11/site-packages/numpy/_core/_multiarray_umath.so", "npy_alloc", False),
        ("/usr/bin/llama-server", "main", False),
        ("/usr/bin/node", "v8::base::OS::Allocate(void*)", False),
    ],
)
def test_known_libraries_are_plumbing(module: str, function: str | None, plumbing: bool) -> None:
    assert is_plumbing(native(module, function)) is plumbing


MALLOC = [native(LIBC, "mmap"), native(LIBC, None), native(LIBC, "malloc"), native("/x/libt.so", "g")]
ARENA = [native(LIBC, "mmap"), native(PYTHON, "_PyMem_ArenaAlloc"), python("/srv/a.py", "f")]
THREAD = [native(LIBC, "mmap"), native(LIBC, "pthread_create"), native("/x/libgomp.so.1", None)]


@pytest.mark.parametrize(
    ("kind", "frames", "layer"),
    [
        ("mmap", [native(LIBC, "mmap"), python("/srv/a.py", "f")], "anon-mmap"),
        ("brk", [native(LIBC, "brk")], "native-heap"),
        ("mmap", MALLOC, "native-heap"),
        ("mmap", ARENA, "python-object"),
        ("mmap", THREAD, "thread-stack"),
        ("mmap", [native("/x/libpool.so", "grow"), native(LIBC, "malloc")], "anon-mmap"),
    ],
)
def test_layer_by_the_way_memory_was_requested(kind: str, frames: list[Frame], layer: str) -> None:
    site = AllocationSite(
        pid=1, site_id=1, kind=kind, stack=Stack(frames=tuple(frames)), outstanding_bytes=1, outstanding_count=1,
        allocated_bytes=1, allocated_count=1, freed_bytes=0, freed_count=0, first_ns=0, last_ns=0,
    )  # fmt: skip
    assert layer_of(site) == layer
