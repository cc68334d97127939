"""The hook audit on real processes: real UCX, patches of every kind, and healthy programs that must stay clean."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from processes import compiled, python, running

from memforensics.case.model import Hook, HookAudit, Loss, Module
from memforensics.errors import ProbeFailed
from memforensics.jobs.stacks import stacks
from memforensics.probes.hooks import audit_hooks
from memforensics.symbols.address_space import AddressSpace
from memforensics.target import open_process

pytestmark = [pytest.mark.live, pytest.mark.needs_root]

Audited = tuple[list[Hook], HookAudit, list[Module], list[Loss]]


def audit(pid: int) -> Audited:
    process = open_process(pid)
    try:
        return audit_hooks(process, AddressSpace(process))
    finally:
        process.close()


@pytest.fixture(scope="session")
def ucx_folder(ucx_example: Callable[..., list[str | Path]]) -> str:
    """The folder of UCX 1.19.0's libraries: MEMFORENSICS_UCX_DIR, or the example's own."""
    if "MEMFORENSICS_UCX_DIR" in os.environ:
        return os.environ["MEMFORENSICS_UCX_DIR"]
    interpreter = subprocess.run([*ucx_example(), "--prepare"], capture_output=True, text=True, check=True)
    words = "import libucx; print(libucx.__path__[0] + '/lib')"
    found = subprocess.run([interpreter.stdout.strip(), "-c", words], capture_output=True, text=True, check=True)
    return found.stdout.strip()


# --- real UCX


@pytest.mark.needs_ucx
@pytest.mark.parametrize("name", ["libucp.so.0", "libucp.so"])
def test_ucx_default_mode_is_an_inline_patch_and_the_got_is_clean(ucx_folder: str, name: str) -> None:
    """Under either of the names that the wheel has its libraries by."""
    with running(python("hook_ucx.py", f"{ucx_folder}/{name}")) as child:
        hooks, looked, modules, losses = audit(child.pid)
    by_function = {hook.function: hook for hook in hooks}
    assert {"mmap", "munmap"} <= by_function.keys()
    for hook in hooks:
        assert hook.mechanism == "inline"
        assert hook.owner_path is not None
        assert hook.owner_path.startswith(f"{ucx_folder}/libucm.so.0")
        assert hook.owner_version == "1.19.0"
        assert hook.target_function == f"ucm_override_{hook.function}"
        assert hook.live_bytes is not None
        assert hook.live_bytes.startswith(("e9", "48b8"))
        assert hook.original_bytes != hook.live_bytes
    munmap = by_function["munmap"]
    library = Path(munmap.owner_path or "").name
    assert munmap.patched_in is not None
    assert munmap.chain == (f"{Path(munmap.patched_in).name}!munmap", f"{library}!ucm_override_munmap")
    assert munmap.owner_build_id
    assert looked.got_slots > 0
    assert losses == []
    versions = {Path(m.path).name.partition(".")[0]: m.version for m in modules}
    assert versions["libucp"] == versions["libucs"] == versions["libucm"] == "1.19.0"


@pytest.mark.needs_ucx
def test_ucx_mode_reloc_changes_got_slots(ucx_folder: str) -> None:
    with running(python("hook_ucx.py", f"{ucx_folder}/libucp.so.0"), env={"UCX_MEM_MMAP_HOOK_MODE": "reloc"}) as child:
        hooks, _, _, _ = audit(child.pid)
    assert {hook.mechanism for hook in hooks} == {"got"}
    by_function = {hook.function: hook for hook in hooks}
    assert by_function["munmap"].target_function == "ucm_override_munmap"
    assert by_function["mmap"].owner_version == "1.19.0"
    assert by_function["mmap"].objects
    assert any("libucm" not in Path(path).name for path in by_function["mmap"].objects)


@pytest.mark.needs_ucx
def test_ucx_mode_none_leaves_no_hook(ucx_folder: str) -> None:
    with running(python("hook_ucx.py", f"{ucx_folder}/libucp.so.0"), env={"UCX_MEM_MMAP_HOOK_MODE": "none"}) as child:
        hooks, looked, _, _ = audit(child.pid)
    assert hooks == []
    assert looked.entries_compared > 10


@pytest.mark.needs_ucx
def test_command_reports_the_hook(ucx_folder: str) -> None:
    with running(python("hook_ucx.py", f"{ucx_folder}/libucp.so.0")) as child:
        done = subprocess.run(
            [sys.executable, "-m", "memforensics", "hooks", str(child.pid), "--json"], capture_output=True, check=True
        )
        shown = subprocess.run(
            [sys.executable, "-m", "memforensics", "hooks", str(child.pid)], capture_output=True, check=True, text=True
        )
    report = json.loads(done.stdout)
    munmap = next(hook for hook in report["hooks"] if hook["function"] == "munmap")
    assert munmap["mechanism"] == "inline"
    assert munmap["owner"]["version"] == "1.19.0"
    assert "GOT" in munmap["meaning"]
    assert "munmap" in shown.stdout
    assert "finds nothing" in shown.stdout


@pytest.mark.needs_ucx
@pytest.mark.needs_gdb
def test_no_breakpoint_is_set_on_patched_code(ucx_folder: str) -> None:
    with running(python("hook_ucx.py", f"{ucx_folder}/libucp.so.0")) as child:
        with pytest.raises(ProbeFailed, match="was patched in memory"):
            stacks(child.pid, function="munmap")
        assert child.alive


# --- patches of every kind


@pytest.mark.parametrize(("way", "hops"), [("rel32", 3), ("movabs", 2), ("r11", 2), ("ripjmp", 2)])
def test_each_kind_of_jump_is_followed_to_its_owner(way: str, hops: int) -> None:
    program = compiled("hook_inline.c")
    with running([program, way]) as child:
        hooks, _, _, losses = audit(child.pid)
    (hook,) = hooks
    assert (hook.function, hook.mechanism) == ("shmdt", "inline")
    assert (hook.owner_path, hook.target_function) == (str(program), "my_shmdt")
    assert len(hook.chain) == hops
    assert hook.chain[-1] == f"{program.name}!my_shmdt"
    assert losses == []


def test_unfinished_patch_is_a_hook_without_an_owner() -> None:
    with running([compiled("hook_inline.c"), "self"]) as child:
        (hook,), *_ = audit(child.pid)
    assert (hook.function, hook.mechanism, hook.owner_path) == ("shmdt", "inline", None)
    assert (hook.live_bytes or "").startswith("ebfe")


def test_int3_is_reported_but_is_not_a_hook() -> None:
    with running([compiled("hook_inline.c"), "int3"]) as child:
        hooks, _, _, losses = audit(child.pid)
    assert hooks == []
    (loss,) = losses
    assert "int3" in loss.what
    assert loss.what.endswith("!shmdt")


@pytest.mark.parametrize("flags", [("-Wl,-z,now",), ("-Wl,-z,lazy", "-Wl,-z,norelro"), ("-no-pie",)])
def test_changed_slot_is_found(flags: Sequence[str]) -> None:
    program = compiled("hook_got.c", *flags)
    with running([program, "munmap"]) as child:
        (hook,), *_ = audit(child.pid)
    assert (hook.function, hook.mechanism, hook.target_function) == ("munmap", "got", "my_munmap")
    assert (hook.owner_path, hook.objects) == (str(program), (str(program),))


def test_slot_into_anonymous_memory_has_no_owner() -> None:
    with running([compiled("hook_got.c"), "malloc"]) as child:
        (hook,), *_ = audit(child.pid)
    assert (hook.function, hook.mechanism, hook.owner_path) == ("malloc", "got", None)


# --- healthy processes


@pytest.mark.parametrize("flags", [(), ("-no-pie", "-fno-pie"), ("-Wl,-z,lazy",), ("-Wl,-z,now",), ("-static",)])
@pytest.mark.parametrize("with_library", [False, True])
def test_healthy_program_has_no_hook(flags: Sequence[str], with_library: bool) -> None:
    if with_library and "-static" in flags:
        return
    library = compiled("hook_own_malloc.c", "-shared", "-fPIC")
    with running([compiled("hook_healthy.c", *flags), *([library] if with_library else [])]) as child:
        hooks, looked, _, losses = audit(child.pid)
    assert hooks == []
    assert losses == []
    assert looked.entries_compared > 0


def test_second_libc_in_another_namespace_is_not_a_hook() -> None:
    library = compiled("hook_own_malloc.c", "-shared", "-fPIC")
    with running([compiled("hook_healthy.c"), library, "libz.so.1"]) as child:
        hooks, looked, _, losses = audit(child.pid)
    assert (hooks, losses) == ([], [])
    with running([compiled("hook_healthy.c"), library]) as child:
        alone = audit(child.pid)[1]
    assert looked.entries_compared == 2 * alone.entries_compared - len(
        {"malloc", "calloc", "realloc", "free", "memalign", "aligned_alloc", "posix_memalign"}
    )  # two libcs, one library with a malloc of its own


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-u", "-c", "import ssl, sqlite3, ctypes, pandas; print('ready'); input()"],
        ["bash", "-c", "echo ready; read line"],
        ["perl", "-e", "$|=1; print qq(ready\\n); <STDIN>"],
    ],
    ids=["python", "bash", "perl"],
)
def test_everyday_programs_have_no_hook(command: list[str]) -> None:
    with running(command) as child:
        hooks, looked, _, losses = audit(child.pid)
    assert hooks == []
    assert losses == []
    assert looked.got_slots > 0


def test_preloaded_allocator_is_a_preload_hook_only() -> None:
    library = compiled("hook_own_malloc.c", "-shared", "-fPIC")
    with running([compiled("hook_healthy.c")], env={"LD_PRELOAD": str(library)}) as child:
        hooks, *_ = audit(child.pid)
    assert {hook.mechanism for hook in hooks} == {"preload"}
    assert {hook.owner_path for hook in hooks} == {str(library)}
    assert {hook.function for hook in hooks} == {
        "malloc",
        "calloc",
        "realloc",
        "free",
        "memalign",
        "aligned_alloc",
        "posix_memalign",
    }


def test_audit_changes_nothing_in_the_process() -> None:
    """It only reads: memory and mappings are what they were."""
    with running([compiled("hook_healthy.c")]) as child:
        process = open_process(child.pid)
        while not process.read_text("syscall").startswith("34 "):  # pause(2)
            time.sleep(0.01)
        before = [(m, process.memory.read(m.start, m.size)) for m in process.maps().mappings if "w" in m.perms]
        audit(child.pid)
        after = [(m, process.memory.read(m.start, m.size)) for m in process.maps().mappings if "w" in m.perms]
        assert before == after
        process.close()
