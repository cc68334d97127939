"""What a frame is to a person: plumbing (libc, allocators, the interpreter, an interposer's pass-through) or somebody's
code. And which of a stack's frames stand inside an interposer, and inside which call."""

import re
from collections.abc import Sequence
from dataclasses import replace

from memforensics.analysis.application import MODULE, is_application, is_launcher
from memforensics.case.model import AllocationSite, Caller, Frame, Hook, Layer, Stack
from memforensics.text import basename

_LIBC = re.compile(
    r"(lib(c|pthread|dl|rt|m|util|resolv)[-.].*so.*|ld[-.].*so.*|ld-linux.*|ld-musl.*|libc\.musl.*|\[vdso\])"
)
_MALLOC_LIBRARY = re.compile(
    r"lib(jemalloc|tcmalloc|tcmalloc_minimal|mimalloc|tbbmalloc|tbbmalloc_proxy|snmalloc.*|hoard)[-._].*so.*"
)
_CXX_RUNTIME = re.compile(r"lib(stdc\+\+|gcc_s|c\+\+|c\+\+abi)[-.].*so.*")
_CALLS_THROUGH = re.compile(r"libffi[-.].*so.*")  # calls a function on behalf of ctypes or cffi
# A runtime's own functions, in whichever file they are linked, and what a JVM asks the system through.
_RUNTIME = re.compile(r"runtime\.[A-Za-z_(]\S*")  # Go
_JVM_ASKS = re.compile(r"os::\w+(::\w+)*\(.*|AllocateHeap\(.*")
_V8 = re.compile(r"(.* )?v8::(base|internal)::.*")
_INTERPRETER = re.compile(r"(lib)?python[23](\.\d+)?[a-z]*([-.].*)?")
_INTERPRETER_SYMBOL = re.compile(r"_?Py[A-Z_]\w*|py[a-z]+_[a-z]\w*")
_MALLOC = re.compile(
    r"(__libc_)?(malloc|calloc|realloc|reallocarray|memalign|posix_memalign|aligned_alloc|valloc|pvalloc)"
    r"|_int_(malloc|realloc|memalign)|sysmalloc(_mmap)?|new_heap|alloc_new_heap|grow_heap|arena_get2?|ptmalloc_init"
    r"|operator new.*|_Zn[wa].*|(__)?s?brk|__default_morecore|__libc_sbrk"
)
_PYMALLOC = re.compile(r"_PyMem_ArenaAlloc|_PyObject_Arena(Mmap|Malloc)|new_arena|allocate_from_new_pool")
_THREAD = re.compile(r"(__)?pthread_create(@.*)?|allocate_stack|allocate_thread_stack")


def is_libc(frame: Frame) -> bool:
    return frame.module is not None and _LIBC.fullmatch(basename(frame.module)) is not None


def is_allocator(frame: Frame) -> bool:
    """A malloc of its own, or the C++ runtime that `operator new` lives in."""
    name = basename(frame.module)
    return _MALLOC_LIBRARY.fullmatch(name) is not None or _CXX_RUNTIME.fullmatch(name) is not None


def is_interpreter(frame: Frame) -> bool:
    """CPython itself and its standard extension modules (mmap.cpython-*.so and the like in lib-dynload)."""
    if frame.kind == "python" or frame.module is None:
        return False
    if "/lib-dynload/" in frame.module or _INTERPRETER.fullmatch(basename(frame.module)):
        return True
    return frame.function is not None and _INTERPRETER_SYMBOL.fullmatch(frame.function) is not None


def is_plumbing(frame: Frame) -> bool:
    """Whether a native frame is nobody's code in particular."""
    return is_libc(frame) or is_allocator(frame) or is_interpreter(frame) or _only_passes_on(frame)


def _only_passes_on(frame: Frame) -> bool:
    name, function = basename(frame.module), frame.function or ""
    if _CALLS_THROUGH.fullmatch(name) or (frame.kind == "native" and _RUNTIME.fullmatch(function)):
        return True
    return name == "libjvm.so" and _JVM_ASKS.fullmatch(function) is not None


def is_v8_heap(frames: Sequence[Frame]) -> bool:
    """Whether V8 asked for itself: pages of its heap, which JavaScript objects come to lie in."""
    first = next((f for f in frames if f.kind == "python" or not is_plumbing(f)), None)
    return first is not None and first.kind == "native" and _V8.fullmatch(first.function or "") is not None


def caller_of(frames: Sequence[Frame]) -> Caller | None:
    """The application's innermost Python function. Where no application code is on the stack, the innermost Python
    function that is not a launcher's, marked as not the application's; None where there is no such."""
    python = [f for f in frames if f.kind == "python" and f.function is not None and f.file is not None]
    calls: str | None = None
    for frame in python:
        if is_application(frame.file, frame.function, calls):
            return Caller(function=frame.function or "?", file=frame.file or "?", line=frame.line)
        calls = frame.file
    nearest = [f for f in python if not is_launcher(f.file, f.function)]
    chosen = next((f for f in nearest if f.function != MODULE), nearest[0] if nearest else None)
    if chosen is None:
        return None
    return Caller(function=chosen.function or "?", file=chosen.file or "?", line=chosen.line, application=False)


def mark_hooks(stack: Stack, hooks: Sequence[Hook]) -> tuple[Stack, str | None]:
    """The stack with frames of interposers as kind "hook"; and the hooked function inside whose replacement the memory
    was asked for, when that function is one that should give memory back (munmap, free, ...), else None.

    System calls never nest, but an interposer's replacement of munmap may itself map memory: its frame then stands
    above the mmap.
    """
    owners = {hook.owner_path for hook in hooks if hook.owner_path}
    if not owners:
        return stack, None
    frames = tuple(
        replace(frame, kind="hook") if frame.kind == "native" and frame.module in owners else frame
        for frame in stack.frames
    )
    inside = None
    for frame in frames:
        hooked = _replaced_function(frame, hooks) if frame.kind == "hook" else None
        if hooked is not None and hooked in _GIVES_BACK:
            inside = hooked
    return replace(stack, frames=frames), inside


_GIVES_BACK = frozenset({"munmap", "free", "shmdt", "madvise", "cuMemFree", "cuMemFree_v2"})


def _replaced_function(frame: Frame, hooks: Sequence[Hook]) -> str | None:
    """The watched function that this frame of an interposer stands in for: it is the hook's target, or is named after
    it (`ucm_munmap` in the library that owns munmap's hook)."""
    if frame.function is None:
        return None
    for hook in hooks:
        if hook.owner_path != frame.module:
            continue
        if frame.function == hook.target_function or re.fullmatch(rf"(.*_)?{re.escape(hook.function)}", frame.function):
            return hook.function
    return None


def culprit_frame(frames: Sequence[Frame], inside: str | None) -> Frame | None:
    """The frame to name: the first that is neither libc, nor an allocator, nor the interpreter and its standard
    extensions, nor an interposer's pass-through - unless the memory is the interposer's own, which it is when it was
    asked for inside a call that gives memory back. None when nothing on the stack qualifies."""
    interposer: Frame | None = None
    for frame in frames:
        if frame.kind == "python":
            # Inside a hook that gives memory back, the Python code below only asked for that: it holds nothing.
            return interposer if inside is not None and interposer is not None else frame
        if frame.kind == "hook":
            interposer = interposer or frame
            continue
        if frame.module is not None and not is_plumbing(frame):
            return frame
        if interposer is not None and inside is not None and is_interpreter(frame):
            return interposer
    return interposer


def layer_of(site: AllocationSite) -> Layer:
    """Which layer a site's memory belongs to, by the way it was asked for."""
    if site.file_backed:
        return "file"
    if site.tmpfs or site.kind == "shm":
        return "shmem"
    if site.kind in ("brk", "malloc") or is_v8_heap(site.stack.frames):
        return "native-heap"
    for frame in site.stack.frames:
        if frame.kind == "python":
            break
        name = frame.function or ""
        if _PYMALLOC.fullmatch(name):
            return "python-object"
        if _THREAD.fullmatch(name) and is_libc(frame):
            return "thread-stack"
        if is_allocator(frame) or (_MALLOC.fullmatch(name) and is_libc(frame)):
            return "native-heap"
        if frame.kind == "native" and not is_plumbing(frame):
            break
    return "anon-mmap"


GLIBC_HEAP_BYTES = 64 << 20  # HEAP_MAX_SIZE on 64-bit (glibc, malloc/arena.c): a further heap of an arena


def extends_heap(site: AllocationSite) -> bool:
    """Whether the mapping became part of a heap, to be filled by whoever asks later: then the stack tells who found the
    heap full, not who keeps what lies in it. A block that malloc gave its own mapping is no such thing."""
    layer = layer_of(site)
    if layer == "python-object" or site.kind == "brk" or is_v8_heap(site.stack.frames):
        return True
    if layer != "native-heap" or site.kind == "malloc":
        return False
    for frame in site.stack.frames:
        if frame.kind == "python" or not is_plumbing(frame):
            break
        if _MALLOC_LIBRARY.fullmatch(basename(frame.module)):
            return True
    return is_reserved_heap(site)


def is_reserved_heap(site: AllocationSite) -> bool:
    """Whether it is address space that glibc reserved for heaps of an arena, which become writable bit by bit."""
    reserved = site.outstanding_count * GLIBC_HEAP_BYTES
    return site.outstanding_bytes == reserved > 0 and layer_of(site) == "native-heap" and site.kind == "mmap"
