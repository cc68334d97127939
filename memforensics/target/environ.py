"""The environment of the target, through an allow-list: other values are never read out of the process.

/proc/PID/environ is the block at exec. A variable that the program set later (vLLM and NIXL do so for UCX) is only in
the live `environ`; its address is found by the rooms above.
"""

import os
import re
import struct
from collections.abc import Iterable

from memforensics.case.model import EnvVar
from memforensics.target.cmdline import harmless_value
from memforensics.target.memory import Memory, Unreadable, read_c_string, read_u64

# Variables that change how memory is obtained, hooked, cached or released.
ALLOWED = re.compile(
    r"(?:UCX|UCS|NCCL|RCCL|NIXL|MALLOC|MIMALLOC|TCMALLOC|JEMALLOC|PYTORCH|TORCH|OMP|KMP|GOMP|MKL|ONEDNN|DNNL|OPENBLAS"
    r"|ARROW|VLLM|SGLANG|LMCACHE|GGML|LLAMA|CUDA|HIP|HSA|XLA|ORT|RAY|MPI|OMPI|FI|IBV|RDMAV|GLIBC)_[A-Z0-9_]*"
    r"|_?RJEM_MALLOC_CONF|MALLOC_CONF|LD_PRELOAD|LD_LIBRARY_PATH|LD_BIND_NOW|LD_AUDIT|GLIBC_TUNABLES"
    r"|PYTHONMALLOC|PYTHONMALLOCSTATS|PYTHONTRACEMALLOC|PYTHON_GIL|GOGC|GOMEMLIMIT|GODEBUG"
    r"|JAVA_OPTS|JAVA_TOOL_OPTIONS|_JAVA_OPTIONS|JDK_JAVA_OPTIONS|OPENSEARCH_JAVA_OPTS|ES_JAVA_OPTS|NODE_OPTIONS"
    r"|WEB_CONCURRENCY|TF_(?:GPU_ALLOCATOR|FORCE_GPU_ALLOW_GROWTH|NUM_[A-Z_]+|CPU_ALLOCATOR[A-Z_]*|XLA_FLAGS)"
)
# An allowed name with one of these words has a secret value (VLLM_API_KEY).
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|COOKIE|PRIVATE", re.IGNORECASE)
_MAX_VARIABLES = 4096
_MAX_VALUE_BYTES = 8192
_ENTRIES_A_READ = 64


def is_allowed(name: str) -> bool:
    """Whether the value of the variable may be kept."""
    return ALLOWED.fullmatch(name) is not None and not SECRET_NAME.search(name)


def allowed_variables(entries: Iterable[bytes], source: str = "exec") -> tuple[EnvVar, ...]:
    """The allow-listed variables among `NAME=value` entries, by name; of equal names the first, as getenv does."""
    found: dict[str, EnvVar] = {}
    for entry in entries:
        name_bytes, equals, value = entry.partition(b"=")
        name = os.fsdecode(name_bytes)
        if equals and name not in found and is_allowed(name):
            text = harmless_value(name, os.fsdecode(value[:_MAX_VALUE_BYTES]))
            found[name] = EnvVar(name=name, value=text, source="live" if source == "live" else "exec")
    return tuple(found[name] for name in sorted(found))


def parse_environ(block: bytes) -> tuple[EnvVar, ...]:
    """The allow-listed variables of /proc/PID/environ."""
    return allowed_variables(block.split(b"\0"))


def live_environ(memory: Memory, environ_address: int) -> tuple[EnvVar, ...]:
    """The allow-listed variables that the process has now. `environ_address` is the address of libc's variable
    `environ` (`__environ`), a pointer to a NULL-terminated array of pointers. Strings that cannot be read are skipped.

    Unreadable if the array itself cannot be read. The program may be changing it: try again.
    """
    array = read_u64(memory, environ_address)
    entries: list[bytes] = []
    for pointer in _pointers(memory, array) if array else ():
        try:
            entries.append(read_c_string(memory, pointer, limit=_MAX_VALUE_BYTES))
        except Unreadable:
            continue
    return allowed_variables(entries, "live")


def _pointers(memory: Memory, array: int) -> list[int]:
    out: list[int] = []
    while len(out) < _MAX_VARIABLES:
        address = array + 8 * len(out)
        # stay within the page: the next one may not be mapped
        count = min(_ENTRIES_A_READ, (4096 - address % 4096) // 8) or 1
        block = struct.unpack(f"<{count}Q", memory.read(address, 8 * count))
        if 0 in block:
            return out + list(block[: block.index(0)])
        out += block
    return out
