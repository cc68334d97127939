"""Compiled eBPF programs are kept for the next time, where nobody else could have put them."""

import os
import platform
from pathlib import Path

import pytest

from memforensics.probes.ebpf.loader import compile_cache as compiled
from memforensics.probes.ebpf.loader import engine
from memforensics.probes.ebpf.loader.compile_cache import Compiled

pytestmark = [pytest.mark.live, pytest.mark.needs_bpf]

SOURCE = b"""
BPF_HASH(seen, u32, u64, 7);
int on_event(void *ctx) {
    u32 one = 1;
    u64 *value = seen.lookup(&one);
    return value != 0;
}
"""
FLAGS = ["-w", "-I/usr/include", f"-I/usr/include/{platform.machine()}-linux-gnu"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(engine.SOURCES))
    return tmp_path / "memforensics" / "ebpf"


class Counting:
    """bcc, and how often it compiled."""

    def __init__(self) -> None:
        self._bcc = engine.import_bcc()
        self.libbcc, self.times = self._bcc.libbcc, 0

    def BPF(self, **given: object) -> object:  # noqa: N802
        self.times += 1
        return self._bcc.BPF(**given)


def made(bcc: Counting, text: bytes = SOURCE) -> Compiled:
    return compiled.compiled(bcc, text, FLAGS)


def test_the_second_load_uses_the_cache(home: Path) -> None:
    bcc = Counting()
    first = made(bcc)
    assert [(spec.name, spec.key_size, spec.value_size, spec.capacity) for spec in first.maps] == [("seen", 4, 8, 7)]
    assert list(first.functions) == ["on_event"]
    assert made(bcc) == first
    assert bcc.times == 1
    assert home.stat().st_mode & 0o777 == 0o700
    (file,) = home.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    made(bcc, SOURCE.replace(b"one = 1", b"one = 2"))
    assert bcc.times == 2


def damage(home: Path) -> None:
    (file,) = home.iterdir()
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)


def cut(home: Path) -> None:
    (file,) = home.iterdir()
    file.write_bytes(file.read_bytes()[:40])


def open_for_others(home: Path) -> None:
    (file,) = home.iterdir()
    file.chmod(0o666)


def open_folder(home: Path) -> None:
    home.chmod(0o777)


def link(home: Path) -> None:
    (file,) = home.iterdir()
    file.rename(home.parent / "elsewhere")
    file.symlink_to(home.parent / "elsewhere")


def of_another_user(home: Path) -> None:
    (file,) = home.iterdir()
    os.chown(file, 12345, 12345)


@pytest.mark.needs_root
@pytest.mark.parametrize("harm", [damage, cut, open_for_others, open_folder, link, of_another_user])
def test_a_changed_cache_is_not_used(home: Path, harm: object) -> None:
    bcc = Counting()
    first = made(bcc)
    assert callable(harm)
    harm(home)
    assert made(bcc) == first
    assert bcc.times == 2


def test_without_a_cache_each_load_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(engine.SOURCES))
    bcc = Counting()
    assert made(bcc) == made(bcc)
    assert bcc.times == 2


@pytest.mark.needs_root
def test_a_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """He may swap it, or a link in it, for any other folder at any time."""
    victim = tmp_path / "victim" / "ebpf"
    victim.mkdir(parents=True)
    for number in range(compiled.MAX_FILES + 8):
        (victim / f"file{number}").touch()
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "memforensics").symlink_to(victim.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(engine.SOURCES))
    bcc = Counting()
    made(bcc)  # the link is ours, and is not followed all the same
    os.chown(cache, 12345, 12345)
    made(bcc)
    (cache / "memforensics").unlink()
    made(bcc)
    assert bcc.times == 3
    assert len(list(victim.iterdir())) == compiled.MAX_FILES + 8
    assert list(cache.iterdir()) == []
