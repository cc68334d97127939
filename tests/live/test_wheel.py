"""The built wheel works in a fresh environment, with all its data."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.live
ROOT = Path(__file__).parent.parent.parent


def run(*words: "str | Path", cwd: Path, **env: str) -> str:
    # Nothing of this checkout, of this environment or of this session may help.
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(words, cwd=cwd, env={**kept, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what git knows: a build leaves folders behind."""
    copy = tmp_path_factory.mktemp("checkout") / "memforensics"
    files = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, files):
        origin, place = ROOT / name, copy / name
        if not origin.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_symlink():
            place.symlink_to(origin.readlink())
        else:
            place.write_bytes(origin.read_bytes())
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `python -m build` does: the sdist first, the wheel from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, cwd=checkout)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    run(folder / "venv/bin/python", "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    return folder / "venv" / "bin"


def test_wheel_has_all_data_files(checkout: Path, wheel: Path) -> None:
    inside = {name.split("/", 1)[1] for name in zipfile.ZipFile(wheel).namelist() if name.startswith("memforensics/")}
    suffixes = (".c", ".h", ".toml", ".json", ".bt", ".gdb", ".typed")
    files = [path.relative_to(checkout / "memforensics") for path in (checkout / "memforensics").rglob("*")]
    expected = {str(path) for path in files if path.suffix in (*suffixes, ".py")}
    assert len(expected) > 50
    assert expected <= inside, expected - inside
    for folder, shipped in (("scripts/bpftrace", "bpftrace"), ("examples/ucx_rcache_leak", "ucx_rcache_leak")):
        names = {path.name for path in (checkout / folder).iterdir() if path.suffix in (".bt", ".py", ".md")}
        assert names
        assert {f"shipped/{shipped}/{name}" for name in names} <= inside


def test_installed_wheel_runs(fresh: Path, tmp_path: Path) -> None:
    command = fresh / "memforensics"
    assert "diagnose" in run(command, "--help", cwd=tmp_path)
    done = subprocess.run([command, "doctor", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr
    assert {"name", "ok", "why", "enable"} <= set(json.loads(done.stdout)["checks"][0])
    catalogue = run(command, "remedies", "list", "--json", cwd=tmp_path)
    assert {"id", "title", "layer"} <= set(json.loads(catalogue)[0])


def test_installed_wheel_finds_its_data(fresh: Path, tmp_path: Path) -> None:
    code = (
        "from memforensics.jobs.demo import LAUNCHER\n"
        "from memforensics.probes.ebpf.bpftrace import SCRIPTS\n"
        "assert (SCRIPTS / 'outstanding_mmap.bt').is_file(), SCRIPTS\n"
        "print(LAUNCHER)\n"
    )
    launcher = Path(run(fresh / "python", "-c", code, cwd=tmp_path).strip())
    assert ROOT not in launcher.parents
    assert "--ucx-version" in run(fresh / "python", launcher, "--help", cwd=tmp_path)


@pytest.mark.needs_ucx
@pytest.mark.needs_bpf
def test_demo_runs_from_the_wheel(fresh: Path, tmp_path: Path) -> None:
    """The main job from the wheel: the leak is found, its cause named."""
    report = json.loads(run(fresh / "memforensics", "demo", "--duration", "20s", "--json", cwd=tmp_path))
    assert report["verdict"] == "leak"
    assert report["findings"][0]["culprit"]["library"].startswith("libuc")
