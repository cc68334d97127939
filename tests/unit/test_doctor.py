"""What settings of other hosts would be told, from folders that look like their /proc and /sys."""

import os
import struct
import tempfile
from pathlib import Path

import pytest

from memforensics.case.views import Check, Examination
from memforensics.errors import PermissionNeeded, ToolMissing
from memforensics.probes.ebpf.loader.btf import BtfKind, type_id
from memforensics.probes.ebpf.loader.engine import tracefs
from memforensics.probes.ebpf.loader.feature_probe import PROGRAM_TYPES
from memforensics.probes.host.machine import CAPABILITIES, _capability, _kernel, _settings, pod_setting

NONE, ALL = 0, sum(1 << bit for bit, _ in CAPABILITIES.values())


def settings(root: Path, effective: int, **values: str) -> dict[str, Check]:
    for name, text in values.items():
        path = (
            root
            / {
                "paranoid": "sys/kernel/perf_event_paranoid",
                "scope": "sys/kernel/yama/ptrace_scope",
                "lockdown": "kernel/security/lockdown",
            }[name]
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {check.name: check for check in _settings(root, root, effective)}


def test_machines() -> None:
    assert _kernel("6.8.0-31-generic", "x86_64").why == "Linux 6.8.0-31-generic on x86_64"
    written = _kernel("6.8.0-31-generic", "aarch64")
    assert written.ok
    assert "untested" in written.why
    assert not _kernel("6.8.0-31-generic", "riscv64").ok
    assert not _kernel("5.4.0", "aarch64").ok


@pytest.mark.parametrize(
    ("scope", "effective", "ok"),
    [("0", NONE, True), ("1", NONE, False), ("1", ALL, True), ("3", ALL, False)],
)
def test_yama(tmp_path: Path, scope: str, effective: int, ok: bool) -> None:
    check = settings(tmp_path, effective, scope=scope)["ptrace_scope"]
    assert check.ok is ok
    assert bool(check.enable) is not ok


def test_missing_settings_pass(tmp_path: Path) -> None:
    assert {check.ok for check in settings(tmp_path, NONE).values()} == {True}


def test_lockdown(tmp_path: Path) -> None:
    assert settings(tmp_path, ALL, lockdown="none [integrity] confidentiality\n")["lockdown"].ok
    assert not settings(tmp_path, ALL, lockdown="none integrity [confidentiality]\n")["lockdown"].ok


def test_perf_event_paranoid(tmp_path: Path) -> None:
    assert not settings(tmp_path, NONE, paranoid="3\n")["perf_event_paranoid"].ok
    assert settings(tmp_path, ALL, paranoid="3\n")["perf_event_paranoid"].ok
    assert settings(tmp_path, NONE, paranoid="-1\n")["perf_event_paranoid"].ok


def test_capability_from_sudo_or_from_the_pod() -> None:
    bit, use = CAPABILITIES["CAP_BPF"]
    assert _capability("CAP_BPF", bit, use, 1 << bit, 1 << bit).ok
    assert _capability("CAP_BPF", bit, use, 0, 1 << bit).enable.startswith("sudo")
    assert "add: [BPF]" in _capability("CAP_BPF", bit, use, 0, 0).enable
    assert pod_setting("CAP_BPF", "CAP_PERFMON").startswith("securityContext: {capabilities: {add: [BPF, PERFMON]}}")


def test_only_essential_checks_decide() -> None:
    good, bad = Check("a", True, essential=True), Check("b", False)
    assert Examination((good, bad)).exit_code == 0
    assert Examination((good, bad, Check("c", False, essential=True))).exit_code == 3


def test_a_type_is_found_in_btf() -> None:
    """Types of different lengths before it must be stepped over rightly."""
    strings = b"\0int\0pair\0wanted\0"
    types = b"".join(
        (
            struct.pack("<IIII", 1, 1 << 24, 4, 32),  # 1: INT int
            struct.pack("<III", 5, 4 << 24 | 2, 8) + struct.pack("<6I", 0, 1, 0, 0, 1, 32),  # 2: STRUCT, 2 members
            struct.pack("<III", 0, 13 << 24 | 1, 0) + struct.pack("<2I", 0, 1),  # 3: FUNC_PROTO, 1 parameter
            struct.pack("<III", 10, 8 << 24, 3),  # 4: TYPEDEF wanted
            struct.pack("<III", 10, 12 << 24, 3),  # 5: FUNC wanted
        )
    )
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    data = header + types + strings
    assert (type_id(data, "wanted", BtfKind.TYPEDEF), type_id(data, "wanted", BtfKind.FUNC)) == (4, 5)
    assert type_id(data, "absent", BtfKind.TYPEDEF) == 0
    with pytest.raises(ValueError, match="magic"):
        type_id(bytes(64), "wanted", BtfKind.TYPEDEF)


def test_program_types_have_distinct_names() -> None:
    assert len({kind.name for kind in PROGRAM_TYPES}) == len(PROGRAM_TYPES)


TRACEFS_MOUNT = "30 24 0:12 / /sys/kernel/tracing rw,nosuid - tracefs nodev rw\n"


@pytest.mark.needs_root
def test_forbidden_tracefs_is_not_reported_as_unmounted(tmp_path: Path) -> None:
    """As a user that may not enter the folder, which an empty mount point of root's looks like, too."""
    (tmp_path / "tracing/events").mkdir(parents=True)
    (tmp_path / "tracing").chmod(0o700)
    mounted, not_mounted = Path(tempfile.gettempdir()) / f"{os.getpid()}.mounted", Path("/dev/null")
    mounted.write_text(TRACEFS_MOUNT)
    mounted.chmod(0o644)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionNeeded) as closed:
            tracefs((tmp_path / "tracing",), mounted)
        with pytest.raises(ToolMissing) as missing:
            tracefs((tmp_path / "tracing",), not_mounted)
    finally:
        os.seteuid(0)
        mounted.unlink()
    assert "CAP_DAC_READ_SEARCH" in closed.value.enable
    assert "mount -t" not in closed.value.enable
    assert missing.value.enable.startswith("sudo mount -t tracefs")
    assert tracefs((tmp_path / "tracing",), not_mounted) == tmp_path / "tracing"
