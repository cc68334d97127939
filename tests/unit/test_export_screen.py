"""The live screen: keys, columns that stay where they are, and words."""

import io
from dataclasses import replace

import pytest
from exported import GROW, HOSTILE, INLINED, LOAD, MAIN, SERVE, SITES, START, STRANGE, site
from rich.console import Console

from memforensics.analysis.site_groups import group_sites
from memforensics.case.model import Anchor, Case, CaseMeta, Target, TraceSummary
from memforensics.case.views import SiteGroup, TraceTick, TraceView
from memforensics.cli.screen.keys import split_keys
from memforensics.report.labels import group_name, group_name_in, plain_function
from memforensics.report.terminal.trace import SORTS, Screen, after_key, live_screen, result
from memforensics.units import count_text


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        ("", []),
        ("q", ["q"]),
        ("sp", ["s", "p"]),
        ("\x1b[A\x1b[B\x1bOA", ["up", "down", "up"]),
        ("\r\n", ["enter", "enter"]),
        ("\x1b", []),
        ("\x1b[5~q", ["q"]),
    ],
)
def test_terminal_input_is_split_into_keys(sent: str, keys: list[str]) -> None:
    assert split_keys(sent) == keys


def test_each_key_changes_the_screen() -> None:
    screen = Screen()
    assert after_key(after_key(screen, "p", 3), " ", 3) == screen
    assert after_key(screen, "x", 3) == screen
    assert [after_key(screen, key, 3).at for key in ("j", "down", "k", "up")] == [1, 1, 0, 0]
    assert after_key(after_key(screen, "j", 1), "j", 0).at == 0
    assert after_key(screen, "e", 3).open
    assert [after_key(screen, "n", 3).nth, after_key(after_key(screen, "n", 3), "n", 3).nth] == [0, 1]
    assert after_key(after_key(after_key(screen, "n", 3), "n", 3), "j", 3).nth == 0
    assert after_key(screen, "q", 3).ending
    seen = [screen.sort]
    for _ in SORTS:
        screen = after_key(screen, "s", 3)
        seen.append(screen.sort)
    assert seen == [*SORTS, SORTS[0]]


def groups() -> list[SiteGroup]:
    return group_sites(SITES, (), 20 * 10**9)


def ended() -> TraceView:
    anchor = Anchor(monotonic_ns=0, wall_ns=0)
    meta = CaseMeta(memforensics_version="1", command="trace-mmap", anchor=anchor, root_pid=41, seed=1)
    trace = TraceSummary(
        pid=41,
        engine="bcc",
        began_ns=0,
        ended_ns=10 * 10**9,
        events=17,
        outstanding_bytes=991,
        resident_bytes=991,
        rss_growth_bytes=1000,
        coverage=0.991,
    )
    targets = tuple(Target(pid=pid, start_ticks=1, start_wall_ns=1) for pid in (41, 42))
    return TraceView(
        Case(meta=meta, targets=targets, traces=(trace,)), "mappings", "bcc", 10.0, (), (), tuple(groups())
    )


CLOSED = Screen()


def drawn(width: int, height: int = 30, screen: Screen = CLOSED, shown: list[SiteGroup] | None = None) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    with console.capture() as text:
        console.print(
            live_screen(
                TraceTick("tracing", 3, 7, 5 << 20, ended()),
                groups() if shown is None else shown,
                screen,
                title="trace-mmap 41",
                keys=True,
                top=15,
                width=width,
                height=height,
            )
        )
    return text.get().splitlines()


@pytest.mark.parametrize("width", [60, 80, 110, 200])
@pytest.mark.parametrize("opened", [True, False])
def test_live_screen_fits_and_escapes_hostile_names(width: int, opened: bool) -> None:
    lines = drawn(width, screen=Screen(open=opened, at=1))
    assert len(lines) <= 30
    assert max(map(len, lines)) <= width
    assert not any("\x1b" in line or "\u202e" in line for line in lines)


def test_columns_keep_their_place() -> None:
    few, many = drawn(110, shown=groups()[:1]), drawn(110)
    header = next(line for line in many if "outstanding" in line)
    assert header in few
    ends = header.index("outstanding") + len("outstanding")
    assert {line[ends - 4 : ends] for line in many if "iB " in line and "RSS" not in line} <= {" MiB", " KiB"}


def test_next_key_shows_each_stack_in_turn() -> None:
    sites = [site(41, n, n << 20, 1, LOAD if n == 1 else replace(LOAD, line=8), MAIN) for n in (1, 2)]
    (group,) = group_sites(sites, (), 0)
    shown = ["\n".join(drawn(110, screen=Screen(open=True, nth=n), shown=[group])) for n in range(3)]
    assert "stack 1 of 2, 2.0 MiB" in shown[0]
    assert "service.py:8" in shown[0]
    assert "stack 2 of 2, 1.0 MiB" in shown[1]
    assert shown[2] == shown[0]


def test_sites_that_do_not_fit_are_counted() -> None:
    sites = tuple(site(41, n, n << 12, 1, LOAD if n % 2 else GROW, MAIN) for n in range(1, 3))
    many = group_sites([*sites, *SITES], (), 0)
    assert any("more sites" in line for line in drawn(110, height=8, shown=many * 3))


def test_result_lists_groups_and_shows_stacks() -> None:
    console = Console(file=io.StringIO(), width=130)
    with console.capture() as text:
        console.print(result(ended(), top=2, all_stacks=False, width=130))
    shown = text.get()
    assert "and 2 more sites" in shown
    assert "99.1% of the growth of RSS" in shown
    assert shown.index("\nsite 1") < shown.index("Server.serve ", shown.index("\nsite 1")) < shown.index("\nsite 2")
    assert "site 3" not in shown


def test_group_name_has_the_frame_that_matters_and_the_caller() -> None:
    (both,) = group_sites([site(41, 1, 5, 1, INLINED, GROW, SERVE, MAIN, START)], (), 0)
    assert group_name(both) == "tiny (libpool.so.1) <- Server.serve (service.py:101)"
    (own,) = group_sites([site(41, 1, 5, 1, SERVE, MAIN, START)], (), 0)
    assert group_name(own) == "Server.serve (service.py:101)"
    (strange,) = group_sites([site(41, 1, 5, 1, STRANGE)], (), 0)
    assert group_name(strange).startswith(HOSTILE)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("c10::alloc_cpu(unsigned long)", "c10::alloc_cpu"),
        ("void at::native::fill<float, 2>(at::Tensor&, float)", "at::native::fill"),
        ("std::vector<int>::push_back(int&&) const", "std::vector::push_back"),
        ("at::(anonymous namespace)::grow(int)", "at::(anonymous namespace)::grow"),
        (
            "void c10::function_ref<void (char**, long)>::callback_fn<f(int)::{lambda()#1}>(long)",
            "c10::function_ref::callback_fn",
        ),
        ("operator new(unsigned long)", "operator new"),
        ("bool ns::operator< <int>(ns::A<int> const&)", "ns::operator<"),
        ("void run<f()::{lambda(int)#1}>::operator()(char) const", "run::operator()"),
        ("auto f(int)::{lambda(int)#2}::operator()(int) const", "f"),
        ("<T as core::ops::Fn>::call", "<T as core::ops::Fn>::call"),
        ("ucs_mpool_grow", "ucs_mpool_grow"),
        ("(weird)", "(weird)"),
        ("", ""),
    ],
)
def test_plain_function_drops_parameters(name: str, plain: str) -> None:
    assert plain_function(name) == plain


def test_long_name_loses_parameters_before_places() -> None:
    grow = replace(GROW, function="pool::grow<float>(unsigned long, int)")
    (both,) = group_sites([site(41, 1, 5, 1, grow, SERVE, MAIN, START)], (), 0)
    assert group_name_in(both, 90) == group_name(both)
    assert group_name_in(both, 70) == "pool::grow (libpool.so.1) <- Server.serve (service.py:101)"
    assert group_name_in(both, 30) == "pool::grow <- Server.serve"
    assert group_name_in(both, 25) == "…ol::grow <- Server.serve"
    assert group_name_in(both, 10) == "pool::grow <- Server.serve"


def test_eighty_columns_show_the_application() -> None:
    assert any("tiny <- Server.serve" in line for line in drawn(80))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999_999, "999,999"), (1_500_000, "1.5 M"), (2 * 10**8, "200 M"), (10**9, "1.0 G")]
)
def test_count_fits_its_column(count: int, text: str) -> None:
    assert count_text(count) == text
