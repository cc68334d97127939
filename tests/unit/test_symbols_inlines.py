"""Inlined functions against binutils' addr2line -i, and units found without .debug_aranges."""

import posixpath
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from processes import compiled
from symbols_files import call_sites, open_elf, ucx_libraries

from memforensics.symbols.elf.reader import ElfFile
from memforensics.symbols.names.lines import LineReader, WaitBudget
from memforensics.symbols.names.symbolizer import Named, function_at
from memforensics.symbols.names.symbolizer import named as named_by

ADDRESSES_A_FILE = 250
PLENTY_S = 600.0
Place = tuple[str | None, int | None]


def addr2line(path: Path, addresses: Iterable[int]) -> list[list[tuple[str, Place]]]:
    """Of each address (function, (file, line)), innermost first."""
    if shutil.which("addr2line") is None:
        pytest.skip("needs binutils")
    words = ["addr2line", "-a", "-i", "-f", "-C", "-e", str(path)]
    text = "\n".join(map(hex, addresses))
    lines = subprocess.run(words, input=text, capture_output=True, text=True, check=True).stdout.splitlines()
    out: list[list[tuple[str, Place]]] = []
    at = 0
    while at < len(lines):
        if lines[at].startswith("0x"):
            out.append([])
            at += 1
            continue
        file, _, line = lines[at + 1].partition(" (")[0].rpartition(":")
        out[-1].append((lines[at], (posixpath.normpath(file), int(line)) if line.isdigit() else (None, None)))
        at += 2
    return out


def without_splits(chain: list[tuple[str, Place]]) -> list[tuple[str, Place]]:
    """gcc tells split functions as inlined into themselves, which is no call; recursion may look the same here."""
    return [one for i, one in enumerate(chain) if not i or chain[i - 1][0] != one[0]]


def ours(elf: ElfFile, addresses: Iterable[int]) -> list[Named]:
    reader, addresses = LineReader(elf), list(addresses)
    assert reader.look_up(addresses, WaitBudget(PLENTY_S))
    return [named_by(function_at(elf, address), reader.at(address)) for address in addresses]


def places(named: Named) -> list[Place]:
    return [*((file, line) for _, file, line in named.inlined), (named.file, named.line)]


def functions_of(elf: ElfFile) -> list[tuple[int, int]]:
    text = elf.section(".text")
    assert text is not None
    return [(s.start, s.size) for s in elf.symbols() if s.size and text.vaddr <= s.start < text.vaddr + text.size]


def every_address(elf: ElfFile, *names: str) -> list[int]:
    found = elf.find_symbols(names)
    assert len(found) == len(names)
    return [address for s in found.values() for address in range(s.start, s.start + s.size)]


@pytest.mark.parametrize("path", ucx_libraries(), ids=lambda path: path.name)
def test_real_libraries(path: Path) -> None:
    elf = open_elf(path)
    if elf.section(".debug_info") is None:
        pytest.skip("was built without DWARF")
    addresses = call_sites(elf, ADDRESSES_A_FILE, 3)
    told = addr2line(path, addresses)
    assert sum(len(each) > 1 for each in told) > 10
    for address, found, chain in zip(addresses, ours(elf, addresses), told, strict=True):
        if chain[0][1][1] is not None:
            mine = list(zip([*(name for name, _, _ in found.inlined), chain[-1][0]], places(found), strict=True))
            assert mine in (chain, without_splits(chain)), hex(address)


@pytest.mark.parametrize("flags", [["-gdwarf-4"], ["-gdwarf-5"], ["-gdwarf-5", "-gz=zlib"]])
def test_every_address_of_a_program(flags: list[str]) -> None:
    path = compiled("sym_inline.c", "-O2", *flags)
    elf = open_elf(path)
    addresses = every_address(elf, "keep", "keep_many")
    told = addr2line(path, addresses)
    assert {len(each) for each in told} == {1, 2, 3}
    for found, expected in zip(ours(elf, addresses), told, strict=True):
        assert places(found) == [place for _, place in expected]
        assert [*(name for name, _, _ in found.inlined), found.function] == [name for name, _ in expected]


def test_link_time_optimization() -> None:
    """Names stand in another unit than the code. (binutils calls the file <artificial>: only lines are compared.)"""
    path = compiled("sym_inline.c", "-O2", "-gdwarf-5", "-flto")
    elf = open_elf(path)
    addresses = every_address(elf, "keep", "keep_many")
    for found, expected in zip(ours(elf, addresses), addr2line(path, addresses), strict=True):
        assert [line for _, line in places(found)] == [line for _, (_, line) in expected]
        assert [*(name for name, _, _ in found.inlined), found.function] == [name for name, _ in expected]
        assert {Path(file or "").name for file, _ in places(found)} == {"sym_inline.c"}


def without(section: str, path: Path, folder: Path) -> Path:
    stripped = folder / path.name
    subprocess.run(["objcopy", "--remove-section", section, path, stripped], check=True)
    return stripped


@pytest.mark.parametrize("flag", ["-gdwarf-4", "-gdwarf-5"])
def test_a_file_without_aranges_tells_the_same(flag: str, tmp_path: Path) -> None:
    path = compiled("sym_inline.c", "-O2", flag)
    elf = open_elf(path)
    addresses = every_address(elf, "keep", "keep_many", "main")
    bare = open_elf(without(".debug_aranges", path, tmp_path))
    assert bare.section(".debug_aranges") is None
    expected = ours(elf, addresses)
    assert any(named.inlined for named in expected)
    assert ours(bare, addresses) == expected


def test_a_real_library_without_aranges_tells_the_same(tmp_path: Path) -> None:
    libraries = ucx_libraries()
    if not libraries:
        pytest.skip("needs the UCX wheel")
    elf, bare = open_elf(libraries[-1]), open_elf(without(".debug_aranges", libraries[-1], tmp_path))
    addresses = [start + size // 2 for start, size in functions_of(elf)[::9]]
    assert ours(bare, addresses) == ours(elf, addresses)


CPLUSPLUS = """
#include <vector>
#include <cstdio>
namespace shop {
template <class T> struct Basket {
    std::vector<T> all;
    [[gnu::always_inline]] inline T &put(T one) { all.push_back(one); return all.back(); }
};
[[gnu::noinline]] int fill(Basket<int> &basket, int n) {
    int sum = 0;
    for (int i = 0; i < n; i++) sum += basket.put([&](int k) { return k * n; }(i));
    return sum;
}
}
int main(int c, char **) { shop::Basket<int> b; std::printf("%d\\n", shop::fill(b, c)); }
"""


def test_cplusplus_names_are_demangled(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    source, path = tmp_path / "shop.cc", tmp_path / "shop"
    source.write_text(CPLUSPLUS)
    subprocess.run(["g++", "-g", "-O2", "-o", path, source], check=True)
    elf = open_elf(path)
    addresses = every_address(elf, "_ZN4shop4fillERNS_6BasketIiEEi")
    found = ours(elf, addresses)
    assert {named.function for named in found} == {"shop::fill(shop::Basket<int>&, int)"}
    assert any("shop::Basket<int>::put(int)" in [name for name, _, _ in named.inlined] for named in found)
    for named, expected in zip(found, addr2line(path, addresses), strict=True):
        assert places(named) == [place for _, place in expected]


RUST = """
use std::collections::HashMap;
#[inline(never)]
fn tally(words: &mut HashMap<String, Vec<u64>>, n: u64) -> usize {
    for i in 0..n { words.entry(format!("w{}", i % 97)).or_default().push(i * n); }
    words.values().map(|v| v.iter().filter(|x| **x % 3 == 0).count()).sum()
}
fn main() { let n = std::env::args().count() as u64; println!("{}", tally(&mut HashMap::new(), n)); }
"""


def test_rust_names_and_closures(tmp_path: Path) -> None:
    """LLVM's DWARF: no DW_AT_sibling, functions inside namespaces, lines of 0 for code of no line."""
    if shutil.which("rustc") is None:
        pytest.skip("needs rustc")
    source, path = tmp_path / "tally.rs", tmp_path / "tally"
    source.write_text(RUST)
    done = subprocess.run(["rustc", "-O", "-g", "-o", path, source], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("rustc cannot link here")
    elf = open_elf(path)
    symbol = next(s for s in elf.symbols() if "tally5tally" in s.name)
    addresses = list(range(symbol.start, symbol.start + symbol.size))
    compared = 0
    for named, expected in zip(ours(elf, addresses), addr2line(path, addresses), strict=True):
        assert named.function == "tally::tally"
        if all(line for _, (_, line) in expected):
            assert places(named) == [place for _, place in expected]
            compared += len(expected) > 1
    assert compared > 100
