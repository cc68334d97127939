"""Merging native and Python frames into one stack."""

from hypothesis import given
from hypothesis import strategies as st

from memforensics.runtimes.cpython.splice import splice
from memforensics.runtimes.cpython.stacks import ENTRY, SHIM

Python = tuple[str, int]


def spliced(
    native: list[str], python: list[Python], complete: bool = True, whole: bool = True
) -> tuple[list[str], bool]:
    made = splice(
        native,
        python,
        is_eval=lambda one: one.startswith("eval"),
        flags=lambda one: one[1],
        native_complete=complete,
        python_complete=whole,
    )
    return [one if isinstance(one, str) else one[0] for one in made.frames], made.doubtful


def test_entry_frames_end_a_run() -> None:
    python = [("c", 0), ("b", ENTRY), ("a", ENTRY)]
    assert spliced(["mmap", "eval", "sort", "eval.cold", "main"], python) == (
        ["mmap", "c", "b", "sort", "a", "main"],
        False,
    )


def test_shims_end_a_run_and_are_dropped() -> None:
    python = [("c", 0), ("b", 0), ("shim", SHIM), ("a", 0), ("shim", SHIM)]
    assert spliced(["mmap", "eval", "sort", "eval", "main"], python) == (["mmap", "c", "b", "sort", "a", "main"], False)


def test_one_python_frame_each_before_3_11() -> None:
    python = [("c", ENTRY), ("b", ENTRY), ("a", ENTRY)]
    native = ["mmap", "eval", "call", "eval", "call", "eval", "main"]
    assert spliced(native, python) == (["mmap", "c", "call", "b", "call", "a", "main"], False)


def test_a_native_stack_cut_short_gets_the_rest_appended() -> None:
    python = [("c", ENTRY), ("b", 0), ("a", 0), ("shim", SHIM)]
    assert spliced(["mmap", "eval"], python, complete=False) == (["mmap", "c", "b", "a"], False)
    assert spliced(["mmap", "eval"], python, complete=True) == (["mmap", "c", "b", "a"], True)


def test_missing_python_frames_are_doubtful_and_leave_the_native_one() -> None:
    native = ["mmap", "eval", "call", "eval"]
    assert spliced(native, [("a", ENTRY)], whole=False) == (["mmap", "a", "call", "eval"], True)
    assert spliced(["mmap", "eval"], []) == (["mmap", "eval"], True)
    assert spliced(["mmap", "start_thread"], []) == (["mmap", "start_thread"], False)


def test_stack_is_cut_after_the_end_of_the_python_chain() -> None:
    native = ["mmap", "eval", "switch", "eval", "call", "eval", "main"]
    assert spliced(native, [("b", 0), ("a", ENTRY)]) == (["mmap", "b", "a", "switch"], True)
    assert spliced(native[:3], [("b", 0), ("a", ENTRY)], complete=False) == (["mmap", "b", "a", "switch"], False)


def test_a_run_without_its_end_is_doubtful() -> None:
    assert spliced(["mmap", "eval", "main"], [("b", 0), ("a", 0)]) == (["mmap", "b", "a", "main"], True)


@given(
    st.lists(st.lists(st.text("xyz", min_size=1, max_size=2), max_size=4), max_size=5),
    st.booleans(),
)
def test_matching_stacks_are_not_doubtful(runs: list[list[str]], shims: bool) -> None:
    runs = [run or ["only"] for run in runs]
    native, python, expected = ["mmap"], [], ["mmap"]
    for run in runs:
        native += ["eval", "call"]
        expected += [*run, "call"]
        python += [(name, 0) for name in run[:-1]]
        python += [(run[-1], 0), ("shim", SHIM)] if shims else [(run[-1], ENTRY)]
    assert spliced(native, python) == (expected, False)


@given(
    st.lists(st.sampled_from(["eval", "call", "eval.cold"]), max_size=12),
    st.lists(st.tuples(st.text("abc", min_size=1, max_size=1), st.sampled_from([0, ENTRY, SHIM, 3])), max_size=12),
    st.booleans(),
)
def test_no_frame_is_lost(native: list[str], python: list[Python], complete: bool) -> None:
    frames, _ = spliced(native, python, complete, whole=False)
    assert [frame for frame in frames if frame == "call"] == [one for one in native if one == "call"]
    assert [frame for frame in frames if len(frame) == 1] == [name for name, flags in python if not flags & SHIM]
