"""The conditions of catalogue entries. Each evaluates to met, unmet or unknown, and says what the evidence shows.

Patterns are shell patterns (`libucm*`) for file names of mapped objects and for functions; alternatives are separated
by ` | `. Version ranges are PEP 440 specifiers. To add a condition: add a class here and to `Condition`."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from memforensics.case.model import EvidenceItem, FindingSite, Frame, Layer, Snapshot
from memforensics.remedies.evidence import (
    MatchContext,
    Outcome,
    alternatives,
    environment,
    file_name_matches,
    frame_matches,
)
from memforensics.text import basename


class _Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", kw_only=True):
    """One thing that a sign, a need or a veto asks of the evidence. ValueError or re.error at construction if a pattern
    does not parse."""

    def evaluate(self, context: MatchContext) -> Outcome:
        raise NotImplementedError

    def describe(self) -> str:
        """The condition in words, for the catalogue page."""
        raise NotImplementedError

    @property
    def evidence_kind(self) -> str:
        return str(self.__struct_config__.tag)


class SiteCondition(_Condition, frozen=True, tag="stack", kw_only=True):
    """The sites whose stacks match hold at least `share` of the outstanding bytes of the finding's sites.

    `frames`: patterns `file!function`; each must match a frame of the stack. `inside`: the call was made inside a hook
    of one of these functions. `kinds`: the kinds of sites that count (the stack of a page fault is not an
    allocation)."""

    frames: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("mmap", "mremap", "brk", "malloc")
    share: float = 0.5

    def __post_init__(self) -> None:
        for frame in self.frames:
            if any("!" not in part for part in alternatives(frame)):
                raise ValueError(f"frame pattern {frame!r} is not file!function")

    def describe(self) -> str:
        inside = f", inside a hook of {_any(self.inside)}" if self.inside else ""
        through = f" through {' and '.join(map(_code, self.frames))}" if self.frames else ""
        return f"at least {self.share:.0%} of the outstanding {_any(self.kinds)} memory comes{through}{inside}"

    def evaluate(self, context: MatchContext) -> Outcome:
        sites = [s for s in context.finding.sites if s.kind in self.kinds and s.outstanding_bytes > 0]
        total = sum(site.outstanding_bytes for site in sites)
        if not total:
            return Outcome("unknown", f"no stacks of {' or '.join(self.kinds)} calls were captured")
        matching = [site for site in sites if self.matches(site)]
        share = sum(site.outstanding_bytes for site in matching) / total
        if not matching or share < self.share:
            return Outcome(
                "unmet", f"only {share:.0%} of the outstanding bytes come through {' and '.join(self.frames)}"
            )
        most = max(matching, key=lambda site: site.outstanding_bytes)
        through = ", ".join(
            f"{f.function or '?'} ({basename(f.module or f.file or '?')})" for f in self.matching_frames(most)
        )
        inside = f", inside {most.inside}" if self.inside else ""
        return Outcome(
            "met", f"{share:.0%} of the outstanding bytes come through {through}{inside}", f"sites/{most.pid}"
        )

    def matches(self, site: FindingSite) -> bool:
        if self.inside and site.inside not in self.inside:
            return False
        return all(any(frame_matches(f, pattern) for f in site.stack.frames) for pattern in self.frames)

    def matching_frames(self, site: FindingSite) -> list[Frame]:
        """The outermost matching frame for each pattern."""
        return [[f for f in site.stack.frames if frame_matches(f, pattern)][-1] for pattern in self.frames]


class HookCondition(_Condition, frozen=True, tag="hook", kw_only=True):
    """One of `functions` is hooked by a library whose file name matches `owner`."""

    functions: tuple[str, ...]
    owner: str

    def describe(self) -> str:
        return f"{_any(self.functions)} is hooked by {_code(self.owner)}"

    def evaluate(self, context: MatchContext) -> Outcome:
        audited = any(audit.pid == context.pid for audit in context.case.hook_audits)
        for hook in context.hooks:
            if hook.function in self.functions and file_name_matches(hook.owner_path or "", self.owner):
                return Outcome(
                    "met",
                    f"{hook.function} is hooked ({hook.mechanism}) by {basename(hook.owner_path or '')}",
                    f"hooks/{hook.pid}/{hook.function}",
                )
        text = f"no hook of {' or '.join(self.functions)} by {self.owner} was found"
        return Outcome("unmet" if audited else "unknown", text)


class ModuleCondition(_Condition, frozen=True, tag="module", kw_only=True):
    """A file whose name matches `name` is mapped."""

    name: str

    def describe(self) -> str:
        return f"{_code(self.name)} is mapped"

    def evaluate(self, context: MatchContext) -> Outcome:
        found = context.modules(self.name)
        if found:
            return Outcome("met", f"{basename(found[0].path)} is mapped", f"modules/{context.pid}/{found[0].path}")
        on_stack = next(
            (f.module for f in context.frames() if f.module and file_name_matches(f.module, self.name)), None
        )
        if on_stack:
            return Outcome("met", f"{basename(on_stack)} is mapped")
        known = any(m.pid == context.pid for m in context.case.modules)
        return Outcome("unmet" if known else "unknown", f"no {self.name} is mapped")


class VersionCondition(_Condition, frozen=True, tag="version", kw_only=True):
    """The mapped file's own version is in `range`. A process can map several copies of a library; a copy is the files
    of one folder and its subfolders. The copy on the finding's stacks counts, and others are only mentioned. If the
    files that count have different versions, or no copy is on a stack and the copies differ, the version is unknown."""

    name: str
    range: str
    product: str

    def __post_init__(self) -> None:
        SpecifierSet(self.range)

    def describe(self) -> str:
        return f"the mapped {self.product} ({_code(self.name)}) has a version {self.range}"

    def evaluate(self, context: MatchContext) -> Outcome:
        known = self._read(context)
        stacked = {f.module for f in context.frames() if f.module and file_name_matches(f.module, self.name)}
        here = [k for k in known if k.path in stacked] or [k for k in known if _is_same_copy(k.path, stacked)]
        others = [k for k in known if not any(_is_same_copy(k.path, [counted]) for counted in stacked)]
        if not stacked:
            here, others = known, []
        elsewhere = f"another copy is mapped: {_versions(others)}" if others else ""
        if not here:
            unread = f"the version of {self.product} could not be read"
            return Outcome("unknown", f"{unread} of the copy on the stacks; {elsewhere}" if elsewhere else unread)
        if len({k.version for k in here}) > 1:
            return Outcome("unknown", f"several versions of {self.product} are mapped: {_versions(here)}")
        first = here[0]
        try:
            inside = SpecifierSet(self.range).contains(Version(first.version), prereleases=True)
        except InvalidVersion:
            return Outcome(
                "unknown", f"the version of {self.product} is {first.version!r}, which is not a version number"
            )
        how = f", by {first.how}" if first.how else ""
        loaded = f"{self.product} {first.version} is loaded ({first.path if others else basename(first.path)}{how})"
        text = f"{loaded} and is on the stacks; {elsewhere}, which is not on the stacks" if others else loaded
        return Outcome("met" if inside else "unmet", text, f"modules/{context.pid}/{first.path}")

    def _read(self, context: MatchContext) -> list["_MappedVersion"]:
        """Each mapped file of that name whose version was read."""
        culprit = context.finding.culprit
        read: list[tuple[str | None, str | None, str | None]]
        read = [(m.version, m.path, m.version_how) for m in context.modules(self.name)]
        read += [(culprit.version, culprit.path, None)] if culprit else []
        read += [(h.owner_version, h.owner_path, h.owner_version_how) for h in context.hooks]
        return [
            _MappedVersion(v, path, how or "")
            for v, path, how in read
            if v and path and file_name_matches(path, self.name)
        ]


class _MappedVersion(NamedTuple):
    version: str
    path: str
    how: str


def _versions(found: Iterable[_MappedVersion]) -> str:
    """E.g. `1.19.0 (/a/libucs.so.0), 1.21.0 (/b/libucs.so.0)`: one file of each version."""
    by_version = {each.version: each.path for each in reversed([*found])}
    return ", ".join(f"{version} ({by_version[version]})" for version in sorted(by_version))


def _is_same_copy(path: str, others: Iterable[str]) -> bool:
    """Whether the file is in the folder of one of `others`, or one of the two folders contains the other (UCX loads its
    transports from lib/ucx)."""
    folder = path.rpartition("/")[0]
    folders = [other.rpartition("/")[0] for other in others]
    return any(folder in (each, each.rpartition("/")[0]) or folder.rpartition("/")[0] == each for each in folders)


class EnvCondition(_Condition, frozen=True, tag="env", kw_only=True):
    """The variable (or one of the alternatives) has a value that matches `value`, a regular expression for the whole
    value. Only the live environment can show that it does not."""

    name: str
    value: str

    def __post_init__(self) -> None:
        re.compile(self.value)

    def describe(self) -> str:
        return f"the environment has {_code(self.name)} matching `{self.value}`"

    def evaluate(self, context: MatchContext) -> Outcome:
        read = [(name, *environment(context.target, name)) for name in alternatives(self.name)]
        for name, found, source in read:
            if found is not None and re.fullmatch(self.value, found):
                return Outcome("met", f"{name}={found} ({source})")
        for name, found, source in read:
            if found is not None:
                return Outcome("unmet", f"{name}={found} ({source})")
        live = context.target is not None and any(v.source == "live" for v in context.target.environment)
        return Outcome("unmet" if live else "unknown", f"{self.name} is not in the environment that was read")


class RoleCondition(_Condition, frozen=True, tag="role", kw_only=True):
    """The command line shows this role."""

    role: str

    def describe(self) -> str:
        return f"the process is {self.role}"

    def evaluate(self, context: MatchContext) -> Outcome:
        role = context.target.role if context.target else None
        return Outcome(
            "met" if role == self.role else "unmet",
            f"the process is {role}" if role else "the role of the process is not known",
        )


class CmdlineCondition(_Condition, frozen=True, tag="cmdline", kw_only=True):
    """The words of the command line, joined by one space, contain `pattern` (a regular expression), or with
    `absent = true` do not. `says`: what this means."""

    pattern: str
    says: str
    absent: bool = False

    def __post_init__(self) -> None:
        re.compile(self.pattern)

    def describe(self) -> str:
        return self.says

    def evaluate(self, context: MatchContext) -> Outcome:
        words = context.target.cmdline if context.target else ()
        if not words:
            return Outcome("unknown", "the command line could not be read")
        there = re.search(self.pattern, " ".join(words)) is not None
        return Outcome("met" if there is not self.absent else "unmet", self.says)


class LayerCondition(_Condition, frozen=True, tag="layer", kw_only=True):
    """The finding is in one of these layers."""

    layers: tuple[Layer, ...]

    def describe(self) -> str:
        return f"the growth is in the layer {_any(self.layers)}"

    def evaluate(self, context: MatchContext) -> Outcome:
        layer = context.finding.layer
        return Outcome("met" if layer in self.layers else "unmet", f"the growth is in the layer {layer}")


class HeapCondition(_Condition, frozen=True, tag="heap", kw_only=True):
    """The allocator retains at least this share of its memory, in at least this many arenas."""

    allocator: str
    retained_share: float = 0.0
    arenas: int = 0

    def describe(self) -> str:
        arenas = f", in {self.arenas} arenas or more" if self.arenas else ""
        return f"{self.allocator} keeps at least {self.retained_share:.0%} of its memory free{arenas}"

    def evaluate(self, context: MatchContext) -> Outcome:
        states = [h for h in context.case.heaps if h.pid == context.pid and h.allocator == self.allocator]
        if not states:
            return Outcome("unknown", f"the {self.allocator} heap was not read")
        last = max(states, key=lambda h: h.t_ns)
        if last.retained_bytes is None or not last.system_bytes or (self.arenas and last.arenas is None):
            return Outcome("unknown", f"the {self.allocator} heap was read only in part")
        share = last.retained_bytes / last.system_bytes
        text = f"{self.allocator} keeps {share:.0%} of its memory free and resident"
        if self.arenas:
            text += f", in {last.arenas} arenas"
        enough = share >= self.retained_share and (last.arenas or 0) >= self.arenas
        return Outcome("met" if enough else "unmet", text, f"heaps/{last.pid}/{last.t_ns}")


class HugePagesCondition(_Condition, frozen=True, tag="huge-pages", kw_only=True):
    """From the first to the last reading, transparent huge pages make up at least `share` of the growth of resident
    anonymous memory, while the size of the mappings grew by less than half of it."""

    share: float = 0.8

    def describe(self) -> str:
        return f"huge pages make at least {self.share:.0%} of the growth, and the mappings grow less than half as much"

    def evaluate(self, context: MatchContext) -> Outcome:
        taken = [snapshot for snapshot in context.case.snapshots if snapshot.pid == context.pid]
        first = next(((at, sums) for at, each in enumerate(taken) if (sums := _huge_pages(each))), None)
        last = next(((at, sums) for at, each in reversed([*enumerate(taken)]) if (sums := _huge_pages(each))), None)
        if first is None or last is None or first[0] == last[0]:  # pragma: no mutate (there are both or neither)
            return Outcome("unknown", "huge pages were not read twice")
        huge, resident, size = (after - before for before, after in zip(first[1], last[1], strict=True))
        if resident <= 0:
            return Outcome("unmet", "resident anonymous memory did not grow between the readings")
        text = f"huge pages make {huge / resident:.0%} of the growth of resident anonymous memory"
        return Outcome("met" if huge >= self.share * resident and size < resident / 2 else "unmet", text)


def _huge_pages(snapshot: Snapshot) -> tuple[int, int, int] | None:
    """Bytes of the anonymous mappings: in huge pages, resident, and mapped. None if one of them was not read."""
    huge = resident = size = 0
    for m in snapshot.mappings:
        if not m.path or m.path == "[heap]" or m.path.startswith("[anon"):
            if m.anon_huge is None or m.rss is None:
                return None
            huge, resident, size = huge + m.anon_huge, resident + m.rss, size + m.size
    return (huge, resident, size) if size else None


class UnreadCondition(_Condition, frozen=True, tag="unread", kw_only=True):
    """A required fact that this version cannot read. Always unknown, so the entry never becomes a cause."""

    what: str

    def describe(self) -> str:
        return f"{self.what}, which is not read yet"

    def evaluate(self, context: MatchContext) -> Outcome:
        return Outcome("unknown", f"not read: {self.what}")


Condition = (
    SiteCondition
    | HookCondition
    | ModuleCondition
    | VersionCondition
    | EnvCondition
    | RoleCondition
    | CmdlineCondition
    | LayerCondition
    | HeapCondition
    | HugePagesCondition
    | UnreadCondition
)


def evidence_of(condition: Condition, outcome: Outcome, says: str | None) -> EvidenceItem:
    """An outcome as evidence of a finding. `says`: what it means, in the entry's words."""
    text = f"{says}: {outcome.text}" if says else outcome.text
    return EvidenceItem(kind=condition.evidence_kind, text=text, ref=outcome.ref)


def _any(names: Sequence[str]) -> str:
    return " or ".join(names)


def _code(pattern: str) -> str:
    return " or ".join(f"`{part}`" for part in alternatives(pattern))
