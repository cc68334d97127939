"""Go: from its system stack, where the heap grows, to the goroutine that asked for memory."""

from pathlib import Path

import pytest
from owned import go_program
from tracing import functions, traced

from memforensics.case.model import AllocationSite
from memforensics.probes.ebpf.mmap.probe import mmap_trace

pytestmark = [
    pytest.mark.live,
    pytest.mark.needs_bpf,
    pytest.mark.skipif(not any(Path("/usr/lib").glob("go-*/bin/go")), reason="needs Go: make setup-test"),
]

TURNS = 40


def by_whom(site: AllocationSite) -> bool:
    return "main.growAgain" in functions(site)


def test_the_heap_grows_for_a_goroutine() -> None:
    with traced([go_program("trace_goheap.go", ldflags="")], mmap_trace()) as it:
        for _ in range(TURNS):
            it.do("grow 6")
            if any(by_whom(site) and site.outstanding_count >= 12 for site in it.sample()):
                break
        result = it.result()
    found = [site for site in result.sites if by_whom(site)]
    assert sum(site.outstanding_count for site in found) >= 12, [functions(site) for site in result.sites]
    for site in found:
        assert site.stack.complete
        names = [(name or "").removesuffix(".abi0") for name in functions(site)]
        assert names[-2:] == ["runtime.main", "runtime.goexit"]
        own = names.index("main.growOnce")
        assert names[own : own + 3] == ["main.growOnce", "main.growAgain", "main.main"]
        switch, asked = names.index("runtime.systemstack"), names.index("runtime.mallocgc")
        assert 0 < switch < asked < own
        assert names.count("runtime.systemstack") == 1
        assert not site.stack.frames[switch + 1].guessed
    for site in result.sites:
        names = [(name or "").removesuffix(".abi0") for name in functions(site)]
        assert names[0] == "runtime.sysMmap" or names[0].startswith("runtime/internal/syscall"), names
