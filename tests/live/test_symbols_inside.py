"""Debug files that lie where the target sees them: in its own root directory."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest
from processes import compiled, running

from memforensics.case.model import Mapping
from memforensics.symbols.address_space import AddressSpace, RecordedProcess
from memforensics.symbols.names.symbolizer import Symbolizer
from memforensics.target import open_process

pytestmark = pytest.mark.live


def stripped(folder: Path, *flags: str) -> tuple[Path, Path]:
    """(the program, whose own folder has a debug file in `.debug/`; another copy of the debug file)."""
    whole = compiled("sym_inline.c", "-O2", "-Wl,--build-id", *flags)
    debug = folder / "program.debug"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["objcopy", "--only-keep-debug", whole, debug], check=True)
    program = folder / "program"
    subprocess.run(["objcopy", "--strip-all", f"--add-gnu-debuglink={debug}", whole, program], check=True)
    return program, debug


def names_keep(command: Sequence[str | Path]) -> bool:
    """Whether the running program's static function `keep` has a name and lines, from outside."""
    with running(command) as child, contextlib.closing(open_process(child.pid)) as process:
        space = AddressSpace(process)
        module = space.module_named("program")
        assert module is not None
        elf, lines = space.elf(module), space.lines(module)
        assert elf is not None
        assert lines is not None
        return elf.find_symbol("keep") is not None and lines.has_any


def test_beside_the_program(tmp_path: Path) -> None:
    program, debug = stripped(tmp_path)
    away = tmp_path / "away"
    away.mkdir()
    shutil.move(debug, away)
    assert not names_keep([program])
    shutil.copy(program, program.with_name("copy"))  # another inode: files are known by that
    (tmp_path / ".debug").mkdir()
    shutil.move(away / debug.name, tmp_path / ".debug")
    program.with_name("copy").rename(program)
    assert names_keep([program])


@pytest.mark.needs_root
def test_in_the_root_of_a_container(tmp_path: Path) -> None:
    """The program's root directory is another than ours; so is the debug file's path."""
    program, debug = stripped(tmp_path / "opt", "-static")
    elf_id = subprocess.run(["readelf", "-n", program], capture_output=True, text=True, check=True).stdout
    build_id = elf_id.partition("Build ID: ")[2].split()[0]
    there = tmp_path / "usr" / "lib" / "debug" / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    there.parent.mkdir(parents=True)
    shutil.move(debug, there)
    assert not os.path.exists("/opt/program")
    assert names_keep(["chroot", tmp_path, "/opt/program"])


def test_a_file_that_cannot_be_opened_is_still_known(tmp_path: Path) -> None:
    """By build-id and by the address in the file, so that its frames can be named later."""
    program, _ = stripped(tmp_path)
    with running([program]) as child, contextlib.closing(open_process(child.pid)) as process:
        mappings = process.maps().mappings

        def refused(_: Mapping) -> contextlib.AbstractContextManager[BinaryIO]:
            raise PermissionError("Operation not permitted")

        whole, blind = AddressSpace(process), AddressSpace(RecordedProcess(mappings, refused, process.memory))
        module = whole.module_named("program")
        assert module is not None
        code = next(m for m in module.mappings if "x" in m.perms)
        pcs = range(code.start, code.end, 97)
        known = [Symbolizer(whole).frame_at(pc) for pc in pcs]
        found = [Symbolizer(blind).frame_at(pc) for pc in pcs]
        assert blind.elf(module) is None
    assert known[0].build_id is not None
    assert [(f.module, f.build_id, f.offset) for f in found] == [(f.module, f.build_id, f.offset) for f in known]
