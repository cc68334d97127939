import pytest

from memforensics.symbols.names import demangle


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
