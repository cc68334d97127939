"""Allocation sites for people: grouped by the frame that matters, filtered, and in a stable order. Pure."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

from memforensics.analysis.frames import (
    caller_of,
    culprit_frame,
    extends_heap,
    is_reserved_heap,
    layer_of,
    mark_hooks,
)
from memforensics.case.model import AllocationSite, Caller, Frame, Hook, Layer
from memforensics.case.views import GroupKey, SiteGroup
from memforensics.text import basename
from memforensics.units import NS_PER_MINUTE, NS_PER_S

SortKey = Literal["outstanding", "rate", "count", "age"]
FilterField = Literal["lib", "func", "file"]

K = TypeVar("K")

SWAP_MARGIN = 0.2  # a row rises above another only if it exceeds it by this share
SMOOTHING = 0.5  # share of the way to a new value that each view goes


def group_sites(sites: Iterable[AllocationSite], hooks: Sequence[Hook], now_ns: int) -> list[SiteGroup]:
    """Groups with outstanding memory, most first. `hooks` tell which frames are those of an interposer.

    The frame that matters is the first that is neither libc, nor an allocator, nor the interpreter, nor a pass-through
    of an interposer; it is the interposer's own if the memory is. Two lines of one function are one group. The tracing
    commands show these groups, and diagnose joins them to findings.
    """
    members: dict[GroupKey, list[AttributedSite]] = defaultdict(list)
    for site in sites:
        if site.outstanding_bytes > 0:
            found = attribute(site, hooks)
            members[found.key].append(found)
    groups = [_group(key, found, now_ns) for key, found in members.items()]
    return sorted(groups, key=lambda g: (-g.outstanding_bytes, g.pid, g.sites[0].site_id))


@dataclass(frozen=True, slots=True)
class AttributedSite:
    """One site, with hook frames marked, and the code that requested its memory."""

    site: AllocationSite
    layer: Layer
    extends: bool
    inside: str | None
    named: Frame | None
    caller: Caller | None

    @property
    def key(self) -> GroupKey:
        """Sites with equal keys form a group."""
        caller = (self.caller.file, self.caller.function) if self.caller is not None else ()
        return (self.site.pid, self.layer, self.extends, self.inside, *self._frame_key(), *caller)

    def _frame_key(self) -> tuple[object, ...]:
        named = self.named
        if named is None:  # by the two frames that it is then named after
            return (None, *((f.module or f.file, f.function or f.offset) for f in self.site.stack.frames[:2]))
        if named.kind == "python":
            return ("python", named.file, named.function)
        return (named.module, named.function or named.offset)


def attribute(site: AllocationSite, hooks: Sequence[Hook]) -> AttributedSite:
    """The site's layer and the code that requested its memory, by its stack."""
    stack, inside = mark_hooks(site.stack, [hook for hook in hooks if hook.pid == site.pid])
    marked = site if stack.frames == site.stack.frames else replace(site, stack=stack)
    return AttributedSite(
        site=marked,
        layer=layer_of(site),
        extends=inside is None and extends_heap(site),
        inside=inside,
        named=culprit_frame(stack.frames, inside),
        caller=caller_of(stack.frames),
    )


def site_rate(site: AllocationSite) -> float | None:
    """Growth of the site's outstanding bytes in bytes a minute. None for a timeline under 1 s, or a single mapping."""
    points = site.timeline
    is_one = site.outstanding_count == 1 and site.kind != "mremap"
    if is_one or len(points) < 2 or points[-1].t_ns - points[0].t_ns < NS_PER_S:
        return None
    span = points[-1].t_ns - points[0].t_ns
    return (points[-1].outstanding_bytes - points[0].outstanding_bytes) * NS_PER_MINUTE / span * resident_share(site)


def resident_share(site: AllocationSite) -> float:
    """Resident bytes over outstanding bytes, 0 to 1. If residency was not read: 0 for reserved address space, else
    1."""
    if site.resident_bytes is None or site.outstanding_bytes <= 0:
        return 0.0 if is_reserved_heap(site) else 1.0
    return min(1.0, site.resident_bytes / site.outstanding_bytes)


def resident_bytes(site: AllocationSite) -> int:
    return round(site.outstanding_bytes * resident_share(site))


def sort_value(group: SiteGroup, by: SortKey) -> float:
    """The value that `--sort` compares."""
    if by == "rate":
        return group.bytes_per_minute or 0.0
    if by == "count":
        return group.outstanding_count
    if by == "age":
        return group.age_s or 0.0
    return group.outstanding_bytes


def stable_order(order: Sequence[K], scores: Mapping[K, float], margin: float = SWAP_MARGIN) -> list[K]:
    """All keys of `scores`, highest first. Keys keep their place in `order`, the order of the last view, unless one
    exceeds another above it by `margin`, so rows with nearly equal values do not swap at each view."""
    kept = [key for key in order if key in scores]
    known = set(kept)
    fresh = sorted((key for key in scores if key not in known), key=lambda key: -scores[key])
    out: list[K] = []
    for key in (*kept, *fresh):
        own = scores[key]
        place = next(
            (at for at, other in enumerate(out) if own > scores[other] + margin * abs(scores[other])), len(out)
        )
        out.insert(place, key)
    return out


def smoothed(before: Mapping[K, float], now: Mapping[K, float]) -> dict[K, float]:
    """Values to sort by, each between its last value (0 for a new key) and its present one, so a row whose value comes
    and goes does not jump. A key without a present value stays until its value is close to 0."""
    if not before:
        return dict(now)
    out = {
        key: before.get(key, 0.0) + (now.get(key, 0.0) - before.get(key, 0.0)) * SMOOTHING for key in {**before, **now}
    }
    least = max(0.001, max(map(abs, out.values()), default=0.0) / 1000)
    return {key: value for key, value in out.items() if key in now or abs(value) > least}


# --- filters ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SiteFilter:
    """`lib=libucs`, `func=*alloc*`, `file=service.py`: a frame of the stack matches. Part of the name is enough; a
    pattern with *, ? or [ must match the whole name. Case-sensitive."""

    field: FilterField
    pattern: str

    def matches(self, site: AllocationSite) -> bool:
        return any(self._fits(text) for frame in site.stack.frames for text in self._texts(frame))

    def _texts(self, frame: Frame) -> tuple[str, ...]:
        if self.field == "func":
            return (frame.function,) if frame.function else ()
        path = frame.module if self.field == "lib" else frame.file
        return (basename(path), path) if path else ()

    def _fits(self, text: str) -> bool:
        return fnmatchcase(text, self.pattern) if re.search(r"[*?\[]", self.pattern) else self.pattern in text


def parse_filter(text: str) -> SiteFilter:
    """ValueError if the text is not a filter."""
    name, equals, pattern = text.partition("=")
    if not equals or not pattern or name not in ("lib", "func", "file"):
        raise ValueError(f"{text!r} is not a filter; write lib=NAME, func=NAME or file=NAME")
    return SiteFilter(name, pattern)  # type: ignore[arg-type]  # one of the three


# --- one group --------------------------------------------------------------------------------------------------------


def _group(key: GroupKey, found: list[AttributedSite], now_ns: int) -> SiteGroup:
    found.sort(key=lambda each: (-each.site.outstanding_bytes, each.site.site_id))
    first, sites = found[0], tuple(each.site for each in found)
    rates = [rate for rate in map(site_rate, sites) if rate is not None]
    return SiteGroup(
        key=key,
        pid=first.site.pid,
        layer=first.layer,
        extends=first.extends,
        named=first.named,
        caller=first.caller,
        inside=first.inside,
        sites=sites,
        bytes_per_minute=sum(rates) if rates else None,
        age_s=_age(sites, now_ns),
    )


def _age(sites: Sequence[AllocationSite], now_ns: int) -> float | None:
    """The median age in seconds, from the median ages of the sites weighted by their blocks."""
    medians = sorted((s.age_quantiles_s[1], s.outstanding_count) for s in sites if s.age_quantiles_s is not None)
    if medians:
        half, seen = sum(count for _, count in medians) / 2, 0
        for age, count in medians:
            seen += count
            if seen >= half:
                return age
    return max((_held_s(site, now_ns) for site in sites), default=None)


def _held_s(site: AllocationSite, now_ns: int) -> float:
    """Seconds since the site last had no outstanding memory, by its timeline."""
    since = site.first_ns
    for point in site.timeline:
        if point.outstanding_bytes <= 0:
            since = max(since, point.t_ns)
    return max(0.0, (now_ns - since) / NS_PER_S)
