"""Mutation testing of the code that judges, with mutmut; docs/mutants.md has the score.

    scripts/mutants.py                     every module of [tool.mutmut] in pyproject.toml, anew
    scripts/mutants.py analysis/diff.py    its mutants that were not killed; the other rows of the page stay
    scripts/mutants.py --survivors NAME    shows the changes that no test noticed

One mutant is one small change of one function. It is killed when a unit test that runs this function fails. Texts are
not mutated: what a sentence says is tested where it is printed.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mutants.md"
KEPT = ROOT / "mutants"  # mutmut's mutated copy of the sources, and its results
GOAL = 0.85
ROW = re.compile(r"^\| `(?P<module>[\w/]+\.py)` \|(?P<counts>[ \d|]+)\|")
NOTICED = ("killed", "timeout")
COLUMNS = (*NOTICED, "survived", "no tests", "not checked")
# Test files that kill mutants of a module without importing it.
ADDITIONAL_TESTS = {
    "analysis/diagnosis.py": ["test_headline.py", "test_report_recorded.py"],
    "analysis/unexplained_growth.py": ["test_first_touch.py"],
    "analysis/known_code.py": ["test_frames.py", "test_cpython_application.py"],
    "analysis/line_statistics.py": ["test_trend.py", "test_trend_intervals.py"],
    "analysis/series.py": ["test_series_recorded.py"],
    "probes/ebpf/mmap/pending_unmaps.py": ["test_trace_ledger.py"],
    "remedies/conditions.py": ["test_remedies.py"],
    "remedies/evidence.py": ["test_conditions.py", "test_remedies.py"],
}


def tests_of(module: Path) -> list[str]:
    """The unit test files that import the module, and those named in ADDITIONAL_TESTS."""
    package, name = ".".join(module.parent.parts), module.stem
    imports = re.compile(rf"{re.escape(package)}(\.{name}\b| import [^\n]*\b{name}\b)")
    folder = ROOT / "tests" / "unit"
    found = {path.name for path in folder.glob("test_*.py") if imports.search(path.read_text())}
    found |= {
        test for test in ADDITIONAL_TESTS.get(str(module.relative_to("memforensics")), []) if (folder / test).exists()
    }
    return [f"tests/unit/{test}" for test in sorted(found)]


def mutated_modules() -> list[Path]:
    from mutmut.utils.file_utils import walk_mutatable_files

    return sorted(path for path in walk_mutatable_files() if path.stat().st_size > 100)


def test_mutants(module: Path, children: int, sample: int | None) -> None:
    """Tests the mutants that were not tested or, if all were, those that survived.

    mutmut has no option to exclude string literals, so its operator for them is removed from the list."""
    from mutmut import __main__ as mutmut
    from mutmut.configuration import config
    from mutmut.mutation import mutators
    from mutmut.runners.harness import PytestRunner

    operators = [entry for entry in mutators.mutation_operators if entry[1] is not mutators.operator_string]
    mutators.mutation_operators[:] = operators
    arguments = PytestRunner._pytest_args_regular_run
    PytestRunner._pytest_args_regular_run = lambda runner, tests: arguments(runner, fastest_first(tests))
    config().pytest_add_cli_args_test_selection = [*tests_of(module), "-m", "not slow"]
    mutmut.walk_source_files = lambda: iter([module])  # the other modules are unchanged
    refresh()
    with mutmut.CatchOutput():
        mutmut.create_mutants(1)
    found = outcome(module)
    names = [name for name, status in found.items() if status == "not checked"]
    if sample is not None:
        names = random.Random(1).sample(sorted(found), min(sample, len(found)))
        names = [name for name in names if found[name] == "not checked"]
    names = names or [name for name, status in found.items() if status not in (*NOTICED, "not checked")]
    if names:
        mutmut._run(names, children)


def refresh() -> None:
    """Copies what is newer than its copy and drops its results, because mutants are known by their number. mutmut
    mutates a module anew if its copy has the same age."""
    (KEPT / "mutmut-stats.json").unlink(missing_ok=True)  # of the tests of another module
    for source in (ROOT / "memforensics").rglob("*"):
        copy = KEPT / source.relative_to(ROOT)
        if source.is_file() and source.suffix != ".pyc":
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not copy.exists() or is_older(copy, source):
                shutil.copy2(source, copy)
                copy.with_name(f"{copy.name}.meta").unlink(missing_ok=True)


def is_older(copy: Path, source: Path) -> bool:
    """Whether the copy is older, or incomplete."""
    ours, theirs = copy.stat(), source.stat()
    return theirs.st_mtime > ours.st_mtime or ours.st_size < theirs.st_size


def fastest_first(tests: Iterable[str]) -> list[str]:
    from mutmut.state import state

    return sorted(tests, key=lambda test: state().duration_by_test.get(test, 0.0))


def outcome(module: Path) -> dict[str, str]:
    """Mutant -> its outcome."""
    from mutmut.stats import status_by_exit_code

    kept = KEPT / f"{module}.meta"
    codes = json.loads(kept.read_text())["exit_code_by_key"] if kept.exists() else {}
    return {mutant: status_by_exit_code[code] for mutant, code in codes.items()}


def survivors(module: Path) -> None:
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    for mutant, status in outcome(module).items():
        if status not in (*NOTICED, "not checked"):
            print(f"# {mutant}: {status}")
            print("\n".join(get_diff_for_mutant(mutant, path=module).splitlines()[2:]))


def rows(text: str) -> dict[str, tuple[int, ...]]:
    """Module -> its counts on the page."""
    return {
        found["module"]: tuple(int(count) for count in found["counts"].split("|"))[: len(COLUMNS)]
        for found in map(ROW.match, text.splitlines())
        if found
    }


def table(counts: dict[str, tuple[int, ...]]) -> str:
    lines = [f"| module | {' | '.join(COLUMNS)} | score |", f"|---|{'---:|' * len(COLUMNS)}---:|"]
    total = tuple(sum(column) for column in zip(*counts.values(), strict=True))
    for name, each in [*((f"`{module}`", counts[module]) for module in sorted(counts)), ("**all**", total)]:
        lines.append(
            f"| {name} | {' | '.join(map(str, each))} | {sum(each[: len(NOTICED)]) / (sum(each[:-1]) or 1):.1%} |"
        )
    return "\n".join(lines)


def write_page(module: Path) -> None:
    text = PAGE.read_text()
    counts = rows(text)
    seen = Counter(outcome(module).values())
    counts[str(module)] = tuple(seen[column] for column in COLUMNS)
    known = {str(each) for each in mutated_modules()}
    counts = {each: count for each, count in counts.items() if each in known and any(count)}
    before, after = text.split("<!-- table -->")[0], text.split("<!-- end -->")[1]
    PAGE.write_text(f"{before}<!-- table -->\n{table(counts)}\n<!-- end -->{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="paths, or the end of paths, below memforensics")
    parser.add_argument("--children", type=int, default=2, help="processes at once")
    parser.add_argument("--sample", type=int, metavar="N", help="at most N mutants a module, the same each time")
    parser.add_argument("--survivors", action="store_true", help="run nothing; print what survived")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ["MEMFORENSICS_REQUIRE_ALL"] = "1"  # the same examples each time, and no test is skipped
    modules = [path for path in mutated_modules() if not options.modules or str(path).endswith(tuple(options.modules))]
    if not modules:
        parser.error(f"no module of [tool.mutmut] has this name: {' '.join(options.modules)}")
    if options.survivors:
        for module in modules:
            survivors(module)
        return 0
    if not options.modules:
        shutil.rmtree(KEPT, ignore_errors=True)
    if len(modules) == 1:
        test_mutants(modules[0], options.children, options.sample)
        write_page(modules[0])
        return 0
    words = [sys.executable, __file__, "--children", str(options.children)]
    words += ["--sample", str(options.sample)] if options.sample is not None else []
    return max(subprocess.run([*words, str(module)], check=False).returncode for module in modules)


if __name__ == "__main__":
    sys.exit(main())
