"""The frames of a stack that a report names: the code that requested the memory, the application's function, the hooked
call inside which memory was mapped; and the layer that the request shows. Pure."""

import re
from collections.abc import Sequence
from dataclasses import replace

from memforensics.analysis.application import MODULE, is_application, is_launcher
from memforensics.analysis.known_code import PLUMBING, native_roles
from memforensics.case.model import AllocationSite, Caller, Frame, Hook, Layer, Stack


def is_interpreter(frame: Frame) -> bool:
    """CPython itself and its standard extension modules (mmap.cpython-*.so and the like in lib-dynload)."""
    return "interpreter" in native_roles(frame)


def is_plumbing(frame: Frame) -> bool:
    """Whether a native frame is code that no leak is attributed to."""
    return not PLUMBING.isdisjoint(native_roles(frame))


def is_v8_heap(frames: Sequence[Frame]) -> bool:
    """Whether V8 mapped pages of its own heap, which holds JavaScript objects."""
    first = next((f for f in frames if f.kind == "python" or not is_plumbing(f)), None)
    return first is not None and first.kind == "native" and "v8" in native_roles(first)


def caller_of(frames: Sequence[Frame]) -> Caller | None:
    """The innermost Python function of the application. If the stack has no application code: the innermost Python
    function outside launchers, with `application` False. None if there is none."""
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
    """The stack with frames of interposers as kind "hook", and the freeing function (munmap, free, ...) inside whose
    replacement the memory was requested, or None.

    System calls never nest, but an interposer's replacement of munmap may itself map memory; its frame is then a caller
    of the mmap.
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
        if hooked is not None and hooked in _FREEING_FUNCTIONS:
            inside = hooked
    return replace(stack, frames=frames), inside


_FREEING_FUNCTIONS = frozenset({"munmap", "free", "shmdt", "madvise", "cuMemFree", "cuMemFree_v2"})


def _replaced_function(frame: Frame, hooks: Sequence[Hook]) -> str | None:
    """The watched function that this frame of an interposer replaces: it is the hook's target, or its name ends in the
    function's name (`ucm_munmap` in the library that owns the hook of munmap)."""
    if frame.function is None:
        return None
    for hook in hooks:
        if hook.owner_path != frame.module:
            continue
        if frame.function == hook.target_function or re.fullmatch(rf"(.*_)?{re.escape(hook.function)}", frame.function):
            return hook.function
    return None


def culprit_frame(frames: Sequence[Frame], inside: str | None) -> Frame | None:
    """The first frame outside libc, allocators, the interpreter with its standard extensions, and interposers that pass
    a call through. Memory that an interposer requests inside a freeing call is its own. None if no frame qualifies."""
    interposer: Frame | None = None
    for frame in frames:
        if frame.kind == "python":
            # The Python code that called the freeing function does not hold the memory.
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
    """The layer of a site's memory, from the way it was requested."""
    if site.file_backed:
        return "file"
    if site.tmpfs or site.kind == "shm":
        return "shmem"
    if site.kind in ("brk", "malloc") or is_v8_heap(site.stack.frames):
        return "native-heap"
    for frame in site.stack.frames:
        if frame.kind == "python":
            break
        roles = native_roles(frame)
        if "pymalloc" in roles:
            return "python-object"
        if "thread-start" in roles:
            return "thread-stack"
        if "allocator" in roles or "malloc" in roles:
            return "native-heap"
        if frame.kind == "native" and PLUMBING.isdisjoint(roles):
            break
    return "anon-mmap"


GLIBC_HEAP_BYTES = 64 << 20  # HEAP_MAX_SIZE on 64-bit (glibc, malloc/arena.c): size of an arena's further heaps


def extends_heap(site: AllocationSite) -> bool:
    """Whether the mapping became part of a heap. Other code may fill it later, so the stack shows which code found the
    heap full, not which code keeps the memory. A malloc block with a mapping of its own does not extend a heap."""
    layer = layer_of(site)
    if layer == "python-object" or site.kind == "brk" or is_v8_heap(site.stack.frames):
        return True
    if layer != "native-heap" or site.kind == "malloc":
        return False
    for frame in site.stack.frames:
        if frame.kind == "python" or not is_plumbing(frame):
            break
        if "malloc-library" in native_roles(frame):
            return True
    return is_reserved_heap(site)


def is_reserved_heap(site: AllocationSite) -> bool:
    """Whether it is address space that glibc reserved for heaps of an arena; it becomes writable in parts."""
    reserved = site.outstanding_count * GLIBC_HEAP_BYTES
    return site.outstanding_bytes == reserved > 0 and layer_of(site) == "native-heap" and site.kind == "mmap"
