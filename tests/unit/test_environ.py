"""Only what is allowed leaves the target."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memforensics.target.environ import (
    allowed_variables,
    is_allowed,
    live_environ,
    parse_environ,
)
from memforensics.target.memory import BytesMemory, Unreadable

KEPT = (
    "UCX_MEM_MMAP_HOOK_MODE", "MALLOC_ARENA_MAX", "MALLOC_CONF", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTHONMALLOC",
    "PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS", "NCCL_DEBUG", "VLLM_USE_V1", "_RJEM_MALLOC_CONF",
)  # fmt: skip
DROPPED = ("HOME", "AWS_SECRET_ACCESS_KEY", "VLLM_API_KEY", "RAY_AUTH_TOKEN", "HF_TOKEN", "PATH", "", "XUCX_A")


@pytest.mark.parametrize("name", KEPT)
def test_variables_that_are_kept(name: str) -> None:
    assert is_allowed(name)


@pytest.mark.parametrize("name", DROPPED)
def test_variables_that_are_dropped(name: str) -> None:
    assert not is_allowed(name)


@given(st.dictionaries(st.sampled_from(KEPT + DROPPED), st.text("abc=/ ", max_size=20)))
def test_block_is_reduced_to_allowed_variables(variables: dict[str, str]) -> None:
    block = b"".join(f"{name}={value}\0".encode() for name, value in variables.items())
    assert {found.name: found.value for found in parse_environ(block)} == {
        name: value for name, value in variables.items() if name in KEPT
    }


def test_first_of_equal_names_counts_and_any_bytes_survive() -> None:
    found = allowed_variables([b"UCX_TLS=tcp", b"UCX_TLS=rc", b"no equals sign", b"UCX_LOG=\xff"])
    assert [(v.name, v.value) for v in found] == [("UCX_LOG", "\udcff"), ("UCX_TLS", "tcp")]


def test_passwords_inside_values_are_hidden() -> None:
    (found,) = allowed_variables([b"JAVA_OPTS=-Xmx2g -Djavax.net.ssl.keyStorePassword=hunter2 -Dx=1"])
    assert "hunter2" not in found.value
    assert "-Xmx2g" in found.value


def test_live_environ_reads_the_pointers() -> None:
    base = 0x7F0000000000
    strings = b"UCX_A=1\0HOME=/home/me\0MALLOC_B=two\0"
    count = 3
    array_at, strings_at = base + 8, base + 8 + 8 * (count + 1)
    starts = [strings_at, strings_at + 8, strings_at + 22]
    data = struct.pack("<Q", array_at) + struct.pack("<4Q", *starts, 0) + strings
    found = live_environ(BytesMemory(base, data + bytes(4096)), base)
    assert [(v.name, v.value, v.source) for v in found] == [("MALLOC_B", "two", "live"), ("UCX_A", "1", "live")]


def test_live_environ_of_null_and_of_unreadable_memory() -> None:
    assert live_environ(BytesMemory(0x1000, bytes(8)), 0x1000) == ()
    with pytest.raises(Unreadable):
        live_environ(BytesMemory(0x1000, struct.pack("<Q", 0x9000)), 0x1000)
