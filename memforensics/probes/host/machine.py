"""Checks of the host. Each tries the real thing if that is harmless, and says what it found and what enables it."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from memforensics.case.views import Check
from memforensics.errors import MemforensicsError, PermissionNeeded, ToolMissing
from memforensics.probes.ebpf.loader import feature_probe
from memforensics.probes.ebpf.loader.engine import import_bcc, tracefs
from memforensics.target.pagemap import Pagemap
from memforensics.target.parse import parse_status
from memforensics.target.procfs import ProcFS
from memforensics.target.procmap import ProcMap

# include/uapi/linux/capability.h: name -> bit, and its use
CAPABILITIES: dict[str, tuple[int, str]] = {
    "CAP_SYS_PTRACE": (19, "reading the memory of another user's processes"),
    "CAP_BPF": (39, "loading eBPF programs"),
    "CAP_PERFMON": (38, "attaching them to tracepoints"),
    "CAP_SYS_ADMIN": (21, "map_files, and eBPF on kernels before 5.8"),
    "CAP_SYS_RESOURCE": (24, "locked memory for eBPF maps on kernels before 5.11"),
}
TRACEPOINTS: tuple[tuple[str, bool], ...] = (  # event, and whether diagnose needs it
    ("syscalls/sys_enter_mmap", True),
    ("syscalls/sys_exit_mmap", True),
    ("syscalls/sys_enter_munmap", True),
    ("syscalls/sys_enter_mremap", True),
    ("syscalls/sys_enter_brk", True),
    ("sched/sched_process_exit", True),
    ("exceptions/page_fault_user", False),
    ("kmem/rss_stat", False),
)
_INIT_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h
_SEE_CAPS = "run as root: sudo memforensics ...; in a container: "


def check_host(proc: Path = Path("/proc"), sys_root: Path = Path("/sys")) -> Iterator[Check]:
    """All checks of the host, the most basic first. Settings are read below `proc` and `sys_root`; programs and ioctls
    are tried on the running kernel."""
    status = parse_status((proc / "self/status").read_text())
    effective, bounding = int(status["CapEff"], 16), int(status["CapBnd"], 16)
    yield _kernel(platform.release(), platform.machine())
    yield _btf(sys_root)
    yield from _settings(proc, sys_root, effective)
    for name, (bit, use) in CAPABILITIES.items():
        yield _capability(name, bit, use, effective, bounding)
    yield from _namespaces(proc)
    for kind in feature_probe.PROGRAM_TYPES:
        yield _program_type(kind, sys_root)
    yield from _maps_and_events()
    yield from _tracefs()
    yield _bcc()
    yield from _programs()
    yield from _procfs_ioctls()
    yield _memray()
    yield _nvml()


def pod_setting(*capabilities: str) -> str:
    """Capabilities as Kubernetes and Docker spell them."""
    bare = [name.removeprefix("CAP_") for name in capabilities]
    return (
        f"securityContext: {{capabilities: {{add: [{', '.join(bare)}]}}}}"
        f"   (docker run {' '.join(f'--cap-add={name}' for name in bare)})"
    )


def _kernel(release: str, machine: str) -> Check:
    version = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    if machine not in ("x86_64", "aarch64"):
        return Check(
            "kernel", False, f"Linux {release} on {machine}", "stacks and hooks are for x86-64; /proc works", True
        )
    if version < (5, 8):
        return Check("kernel", False, f"Linux {release}: the BPF ring buffer came with 5.8", "a kernel >= 5.8", True)
    so_far = ": trace-mmap is written, untested; no hooks, stacks, trace-faults yet" if machine == "aarch64" else ""
    return Check("kernel", True, f"Linux {release} on {machine}{so_far}", essential=True)


def _btf(sys_root: Path) -> Check:
    path = sys_root / "kernel/btf/vmlinux"
    if path.exists():
        return Check("BTF", True, str(path))
    return Check("BTF", False, f"no {path}", "a kernel with CONFIG_DEBUG_INFO_BTF=y (all big distributions)")


def _settings(proc: Path, sys_root: Path, effective: int) -> Iterator[Check]:
    tracer, perfmon, admin = (
        bool(effective >> CAPABILITIES[name][0] & 1) for name in ("CAP_SYS_PTRACE", "CAP_PERFMON", "CAP_SYS_ADMIN")
    )
    counts = perfmon or admin  # perfmon_capable(), include/linux/capability.h
    paranoid = _number(proc / "sys/kernel/perf_event_paranoid")
    yield Check(
        "perf_event_paranoid",
        counts or paranoid is None or paranoid <= 1,
        "not on this kernel" if paranoid is None else f"{paranoid}{' (our capabilities pass)' if counts else ''}",
        ""
        if counts or paranoid is None or paranoid <= 1
        else "sudo sysctl kernel.perf_event_paranoid=1, or CAP_PERFMON",
    )
    unprivileged = _number(proc / "sys/kernel/unprivileged_bpf_disabled")
    yield Check(
        "unprivileged_bpf_disabled",
        True,  # memforensics never uses unprivileged BPF
        "not on this kernel" if unprivileged is None else f"{unprivileged} (does not apply to root and CAP_BPF)",
    )
    scope = _number(proc / "sys/kernel/yama/ptrace_scope")
    allowed = scope in (None, 0) or (tracer and scope != 3)
    passes = " (CAP_SYS_PTRACE passes)" if tracer and allowed else ""
    yield Check(
        "ptrace_scope",
        allowed,
        "no Yama on this kernel" if scope is None else f"{scope}{passes}",
        "" if allowed else "sudo sysctl kernel.yama.ptrace_scope=0, or CAP_SYS_PTRACE (3 stays until a reboot)",
        True,
    )
    lockdown = _text(sys_root / "kernel/security/lockdown")
    mode = re.search(r"\[(\w+)\]", lockdown or "")
    confidential = mode is not None and mode[1] == "confidentiality"
    yield Check(
        "lockdown",
        not confidential,
        f"{mode[1]}" if mode else "no lockdown on this kernel, or securityfs is not mounted",
        "boot without lockdown=confidentiality, which forbids BPF to read memory" if confidential else "",
        True,
    )


def _capability(name: str, bit: int, use: str, effective: int, bounding: int) -> Check:
    if effective >> bit & 1:
        return Check(name, True, f"for {use}")
    if bounding >> bit & 1:
        return Check(name, False, f"missing; for {use}", "sudo memforensics ...")
    return Check(name, False, f"this container cannot have it; for {use}", pod_setting(name))


def _namespaces(proc: Path) -> Iterator[Check]:
    try:
        host = os.stat(proc / "self/ns/pid").st_ino == _INIT_PID_NAMESPACE
    except OSError:
        host = True
    yield Check(
        "PID namespace",
        host,
        "the host's" if host else "of a container: processes outside it cannot be seen",
        "" if host else "hostPID: true in the pod   (docker run --pid=host), or observe from the host",
    )
    signs = {
        "Docker": Path("/.dockerenv").exists(),
        "Podman": Path("/run/.containerenv").exists(),
        "Kubernetes": "KUBERNETES_SERVICE_HOST" in os.environ,
    }
    found = [name for name, there in signs.items() if there]
    yield Check("container", True, ", ".join(found) if found else "none seen")


def _program_type(kind: feature_probe.ProgramType, sys_root: Path) -> Check:
    name, essential = f"BPF program: {kind.name}", kind.name == "tracepoint"
    tried = feature_probe.program_type(kind, sys_root / "kernel/btf/vmlinux")
    if not tried.ok:
        enable = _SEE_CAPS + pod_setting("CAP_BPF", "CAP_PERFMON")
        if os.geteuid() == 0:
            enable = "even root is refused: the kernel lacks it, or a security policy or seccomp profile forbids it"
            if not essential:
                enable += "; only for " + kind.use if not kind.use.startswith("not used") else "; " + kind.use
        return Check(name, False, tried.why, enable, essential)
    if kind.name == "kprobe":  # it loads on any kernel; the event sources show what it can attach to
        sources = [s for s in ("kprobe", "uprobe") if (sys_root / "bus/event_source/devices" / s).exists()]
        if "uprobe" not in sources:
            return Check(name, False, "loads, but this kernel has no uprobes", "a kernel with CONFIG_UPROBE_EVENTS=y")
        return Check(name, True, f"loaded; event sources: {', '.join(sources)}")
    return Check(name, True, f"loaded ({kind.use})", essential=essential)


def _maps_and_events() -> Iterator[Check]:
    enable = _SEE_CAPS + pod_setting("CAP_BPF", "CAP_PERFMON")
    ring = feature_probe.ring_buffer()
    yield Check("BPF ring buffer", ring.ok, ring.why or "created", "" if ring.ok else enable, True)
    sampling = feature_probe.perf_sampling()
    yield Check("perf events", sampling.ok, sampling.why or "opened", "" if sampling.ok else enable)


def _tracefs() -> Iterator[Check]:
    try:
        place = tracefs()
        os.stat(place / "events/syscalls/sys_enter_mmap/id")
    except MemforensicsError as error:
        yield Check("tracefs", False, error.what, error.enable, True)
        yield Check("tracepoints", False, "unknown without tracefs", error.enable, True)
        return
    except PermissionError as error:
        closed = PermissionNeeded(f"not allowed to read {error.filename}", privilege="CAP_DAC_READ_SEARCH")
        yield Check("tracefs", False, closed.what, closed.enable, True)
        return
    except OSError:
        pass  # this kernel has no such event; the next check says so
    yield Check("tracefs", True, str(place), essential=True)
    missing = [event for event, _ in TRACEPOINTS if not (place / "events" / event).is_dir()]
    needed = [event for event, main_job in TRACEPOINTS if main_job and event in missing]
    yield Check(
        "tracepoints",
        not missing,
        f"missing: {', '.join(missing)}" if missing else f"all {len(TRACEPOINTS)} tracepoints in use exist",
        "a kernel with CONFIG_FTRACE_SYSCALLS=y" if missing else "",
        bool(needed) or not missing,
    )
    try:
        identity = int((place / "events/syscalls/sys_enter_mmap/id").read_text())
    except PermissionError as error:
        closed = PermissionNeeded(f"not allowed to read {error.filename}", privilege="CAP_DAC_READ_SEARCH")
        yield Check("attach to a tracepoint", False, closed.what, closed.enable, True)
        return
    except (OSError, ValueError) as error:
        yield Check("attach to a tracepoint", False, str(error), _SEE_CAPS + pod_setting("CAP_PERFMON"), True)
        return
    tried = feature_probe.attach_tracepoint(identity)
    enable = "" if tried.ok else _SEE_CAPS + pod_setting("CAP_PERFMON")
    yield Check("attach to a tracepoint", tried.ok, tried.why or "opened sys_enter_mmap", enable, True)


def _bcc() -> Check:
    enable = "sudo apt-get install python3-bpfcc"
    folders = [os.path.join(folder, "bcc") for folder in sys.path if folder]
    wrong = next((f for f in folders if os.path.isdir(f) and not os.path.exists(os.path.join(f, "libbcc.py"))), None)
    if wrong:
        return Check(
            "bcc",
            False,
            f"{wrong} is the `bcc` of PyPI, an unrelated lattice library that hides the real one",
            f"{sys.executable} -m pip uninstall bcc; {enable}",
            True,
        )
    try:
        bcc = import_bcc()
    except ToolMissing as error:
        return Check("bcc", False, str(error), error.enable or enable, True)
    return Check(
        "bcc", True, f"{getattr(bcc, '__version__', 'of unknown version')} in {Path(bcc.__file__).parent}", "", True
    )


def _programs() -> Iterator[Check]:
    for name, use in (("bpftrace", "trace-mmap --engine bpftrace"), ("gdb", "stacks, heap --memray")):
        path = shutil.which(name)
        if path is None:
            yield Check(name, False, f"not on PATH; for {use}", f"sudo apt-get install {name}")
            continue
        try:
            output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
        except (OSError, subprocess.TimeoutExpired) as error:
            yield Check(name, False, f"{path} does not run: {error}", f"sudo apt-get install --reinstall {name}")
            continue
        yield Check(name, True, f"{output.splitlines()[0] if output else 'no version'} ({path})")


def _procfs_ioctls() -> Iterator[Check]:
    why, ok = "PAGEMAP_SCAN works: resident bytes at a fifth of the cost of smaps", True
    try:
        pagemap = Pagemap(os.getpid(), ProcFS())
        ok = pagemap.can_scan()
        pagemap.close()
    except (MemforensicsError, OSError) as error:
        ok, why = False, str(error)
    enable = "a kernel >= 6.7; older ones need smaps, which holds the target's mmap lock longer"
    yield Check("PAGEMAP_SCAN", ok, why if ok else "not on this kernel", "" if ok else enable)
    try:
        with ProcMap(os.getpid(), ProcFS()) as procmap:
            procmap.at(0, or_next=True)
        yield Check("PROCMAP_QUERY", True, "works: finds one mapping without reading all")
    except (MemforensicsError, OSError) as error:
        yield Check("PROCMAP_QUERY", False, f"not on this kernel: {error}", "a kernel >= 6.11; older ones need maps")


def _memray() -> Check:
    there = importlib.util.find_spec("memray") is not None
    enable = "" if there else f"{sys.executable} -m pip install memray"
    return Check("memray", there, "importable" if there else "not installed; for heap --memray", enable)


def _nvml() -> Check:
    import ctypes

    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        why = "no libnvidia-ml.so.1: no NVIDIA driver here, GPU memory is not visible"
        enable = "on a GPU node: install the NVIDIA driver; in a pod: resources.limits nvidia.com/gpu"
        return Check("NVML", False, why, enable)
    code = nvml.nvmlInit_v2()
    if code:
        return Check("NVML", False, f"nvmlInit_v2 gives {code}", "nvidia-smi shows what is wrong with the driver")
    nvml.nvmlShutdown()
    return Check("NVML", True, "nvmlInit_v2 works")


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
