import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from symbols_files import open_elf

from memforensics.symbols.names.demangle import demangle


@pytest.mark.parametrize(
    ("mangled", "readable"),
    [
        ("main", "main"),
        ("_PyEval_EvalFrameDefault.cold", "_PyEval_EvalFrameDefault.cold"),
        ("_ZN2at6native9empty_cpuEv", "at::native::empty_cpu()"),
        ("_Znwm", "operator new(unsigned long)"),
        ("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE", "core::fmt::Write::write_fmt"),
        ("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE.llvm.1234567", "core::fmt::Write::write_fmt"),
        (
            "_ZN70_$LT$alloc..vec..Vec$LT$T$C$A$GT$$u20$as$u20$core..ops..drop..Drop$GT$4drop17hfedcba9876543210E",
            "<alloc::vec::Vec<T,A> as core::ops::drop::Drop>::drop",
        ),
        ("_RNvC6_123foo3bar", "123foo::bar"),
        ("_RNCNvCsgStHSCytQ6I_7mycrate4mainB3_", "_RNCNvCsgStHSCytQ6I_7mycrate4mainB3_"),
        ("_RNCNvCsgStHSCytQ6I_7mycrate4main0B3_", "mycrate::main::{closure#0}"),
        ("_RINvNtC3std3mem8align_ofjdE", "std::mem::align_of::<usize, f64>"),
        ("_ZN3foo17hE", "_ZN3foo17hE"),
        ("_Z", "_Z"),
        ("_ZN99999999", "_ZN99999999"),
        ("", ""),
    ],
)
def test_names(mangled: str, readable: str) -> None:
    assert demangle(mangled) == readable


def test_a_monstrous_name_stays_as_it_is() -> None:
    name = "_Z" + "N1a" * 5000
    assert demangle(name) == name


def test_the_names_of_a_real_rust_wheel() -> None:
    """Against binutils, which prints crate hashes, lifetimes and the types of constants too."""
    spec = importlib.util.find_spec("rpds.rpds") or importlib.util.find_spec("rpds")
    if spec is None or spec.origin is None or shutil.which("c++filt") is None:
        pytest.skip("needs the wheel rpds-py and binutils")
    library = next(iter(Path(spec.origin).parent.glob("rpds*.so")))
    names = sorted({symbol.name for symbol in open_elf(library).symbols() if symbol.name.startswith("_R")})
    command = ["c++filt", "--no-strip-underscore"]
    out = subprocess.run(
        command, input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    compared = 0
    for name, theirs in zip(names, out, strict=True):
        expected = re.sub(r"\[[0-9a-f]{8,16}\]|: (usize|[iu]\d+|bool|char)\b", "", theirs)
        if "'" not in expected:
            assert demangle(name) == expected
            compared += 1
    assert compared > len(names) // 2


@given(st.text(alphabet="_RNCIXMYvtsB0123456789EuFGKLTADSpQz", max_size=60))
def test_any_text_has_a_name(text: str) -> None:
    for mangled in ("_R" + text, "_ZN" + text):
        assert demangle(mangled)
