"""A profile with known figures and hostile names, for tests of exports."""

from memforensics.case.model import AllocationSite, Anchor, Frame, Sample, SitePoint, Stack
from memforensics.report.export.profile import Profile

S = 10**9
HOSTILE = 'a</script><script>alert(1)</script>"><img src=x onerror=alert(2)>&amp;{{data}};\n\x1b[31m\u202e\ud800 5'
START = Frame(kind="native", function="_start", module="/srv/bin/server", build_id="ab" * 20, offset=0x10)
MAIN = Frame(kind="python", function="main", file="/srv/app/main.py", line=3)
SERVE = Frame(kind="python", function="Server.serve", file="/srv/app/service.py", line=101)
LOAD = Frame(kind="python", function="load", file="/srv/app/service.py", line=7)
GROW = Frame(kind="native", function="pool_grow", module="/opt/libpool.so.1", build_id="cd" * 20, offset=0x1234)
UNNAMED = Frame(kind="native", function=None, module="/opt/libplain.so", build_id="ef" * 20, offset=0x77)
INLINED = Frame(
    kind="native", function="tiny", module="/opt/libpool.so.1", offset=0x1234, file="pool.c", line=9, inlined=True
)
STRANGE = Frame(kind="hook", function=HOSTILE, module=f"/opt/{HOSTILE}", offset=1)


def site(pid: int, number: int, held: int, count: int, *leaf_first: Frame, given_back: int = 0) -> AllocationSite:
    return AllocationSite(
        pid=pid,
        site_id=number,
        kind="mmap",
        stack=Stack(frames=leaf_first),
        outstanding_bytes=held,
        outstanding_count=count,
        allocated_bytes=held + given_back,
        allocated_count=count + (given_back > 0),
        freed_bytes=given_back,
        freed_count=int(given_back > 0),
        first_ns=10 * S,
        last_ns=13 * S,
        resident_bytes=held // 2,
        timeline=(SitePoint(t_ns=11 * S, outstanding_bytes=held // 2, outstanding_count=1),),
    )


SITES = (
    site(41, 1, 7 << 20, 7, INLINED, GROW, SERVE, MAIN, START, given_back=4096),
    site(41, 2, 2 << 20, 2, GROW, LOAD, MAIN, START),
    site(41, 3, 1 << 20, 1, STRANGE, MAIN, START),
    site(42, 1, 512 << 10, 3, UNNAMED, START),
    site(42, 2, 0, 0, LOAD, MAIN, START, given_back=1 << 20),
)
TOTAL = sum(s.outstanding_bytes for s in SITES)


def profile(sites: tuple[AllocationSite, ...] = SITES) -> Profile:
    return Profile(
        sites=sites,
        title=f"memforensics trace-mmap {HOSTILE}",
        version="1.2.3",
        anchor=Anchor(monotonic_ns=5 * S, wall_ns=1_700_000_000 * S),
        began_ns=10 * S,
        ended_ns=20 * S,
        executable="/srv/bin/server",
        processes={41: "server", 42: HOSTILE},
        names={(41, 1): "pool_grow (libpool.so.1)", (41, 3): HOSTILE},
        samples=[Sample(pid=41, t_ns=t * S, rss_anon=t << 20, rss_file=1, rss_shmem=4096) for t in (10, 20)],
        notes=("coverage: 99.0%", HOSTILE),
    )
