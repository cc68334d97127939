"""The watched functions: those that obtain and release memory, and those of the dynamic linker."""

# mmap64 is the large-file name of mmap; on 64-bit glibc both have one address (misc/mmap64.c, weak_alias).
ALIASES = {
    "mmap64": "mmap",
    "__mmap": "mmap",
    "__munmap": "munmap",
    "__sbrk": "sbrk",
    "__brk": "brk",
    "__madvise": "madvise",
    "__libc_malloc": "malloc",
    "__libc_free": "free",
    "__libc_calloc": "calloc",
    "__libc_realloc": "realloc",
    "__libc_memalign": "memalign",
}

_KERNEL = ("mmap", "munmap", "mremap", "brk", "sbrk", "madvise", "shmat", "shmdt", "syscall")
_MALLOC = ("malloc", "calloc", "realloc", "free", "posix_memalign", "aligned_alloc", "memalign")
_LINKER = ("dlsym", "dlclose")

# The CUDA driver (libcuda) and runtime (libcudart): functions that allocate, free and map.
_CUDA_NAMES = """
    cuMemAlloc cuMemAlloc_v2 cuMemAllocManaged cuMemAllocPitch cuMemAllocPitch_v2 cuMemAllocAsync
    cuMemAllocFromPoolAsync cuMemAllocHost cuMemAllocHost_v2 cuMemHostAlloc cuMemHostRegister
    cuMemHostRegister_v2 cuMemHostUnregister cuMemFree cuMemFree_v2 cuMemFreeAsync cuMemFreeHost
    cuMemFreeHost_v2 cuMemCreate cuMemRelease cuMemMap cuMemUnmap cuMemAddressReserve cuMemAddressFree
    cudaMalloc cudaMallocManaged cudaMallocPitch cudaMallocAsync cudaMallocHost cudaHostAlloc cudaFree
    cudaFreeAsync cudaFreeHost cudaHostUnregister
"""
_CUDA = tuple(_CUDA_NAMES.split())

WATCHED: tuple[str, ...] = (*_KERNEL, *_MALLOC, *_LINKER, *_CUDA)
"""One name for each function."""

NAMES: tuple[str, ...] = (*WATCHED, *ALIASES)
"""All their names in symbol tables."""


def canonical(name: str) -> str:
    return ALIASES.get(name, name)
