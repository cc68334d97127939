"""What a catalogue entry can ask of the evidence. Each condition answers met, unmet or unknown, and says what it saw.

Unknown is an answer of its own: a version that could not be read is not a wrong version, and a variable that is not in
the block of exec time is not unset (programs set variables later). Patterns are shell patterns (`libucm*`) on the file
name of a mapped object, and on functions; version ranges are PEP 440 specifiers on the mapped file's own version.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import msgspec
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from memforensics.case.model import (
    Case,
    EvidenceItem,
    Finding,
    FindingSite,
    Frame,
    Hook,
    Layer,
    Module,
    Snapshot,
    Target,
)
from memforensics.text import basename

State = Literal["met", "unmet", "unknown"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer of one condition: what the evidence says, and where it stands."""

    state: State
    text: str
    ref: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """What the conditions look at: one finding, and the evidence of its process."""

    finding: Finding
    case: Case

    @property
    def pid(self) -> int:
        return self.finding.pid

    @property
    def target(self) -> Target | None:
        return self.case.target(self.pid)

    @property
    def hooks(self) -> list[Hook]:
        return [hook for hook in self.case.hooks if hook.pid == self.pid]

    def modules(self, pattern: str) -> list[Module]:
        return [m for m in self.case.modules if m.pid == self.pid and named(m.path, pattern)]

    def frames(self) -> Iterator[Frame]:
        for site in self.finding.sites:
            yield from site.stack.frames


class _Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", kw_only=True):
    def judge(self, scene: Scene) -> Outcome:
        raise NotImplementedError

    @property
    def evidence_kind(self) -> str:
        return str(self.__struct_config__.tag)


class SiteCondition(_Condition, frozen=True, tag="stack", kw_only=True):
    """The growing sites whose stacks fit hold at least `share` of the outstanding bytes of the finding's sites.

    `frames`: patterns `file!function`, each of which some frame of the stack must fit (a Python frame's file is its
    source file); alternatives are separated by ` | `. `inside`: the call was made inside a hook of one of these
    functions. `kinds`: only sites of these kinds say anything (a page fault's stack is no allocation's)."""

    frames: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("mmap", "mremap", "brk", "malloc")
    share: float = 0.5

    def judge(self, scene: Scene) -> Outcome:
        sites = [s for s in scene.finding.sites if s.kind in self.kinds and s.outstanding_bytes > 0]
        total = sum(site.outstanding_bytes for site in sites)
        if not total:
            return Outcome("unknown", f"no stacks of {' or '.join(self.kinds)} calls were seen")
        fitting = [site for site in sites if self.fits(site)]
        share = sum(site.outstanding_bytes for site in fitting) / total
        if not fitting or share < self.share:
            return Outcome(
                "unmet", f"only {share:.0%} of the outstanding bytes come through {' and '.join(self.frames)}"
            )
        most = max(fitting, key=lambda site: site.outstanding_bytes)
        through = ", ".join(f"{f.function or '?'} ({basename(f.module or f.file or '?')})" for f in self.seen(most))
        inside = f", inside {most.inside}" if self.inside else ""
        return Outcome(
            "met", f"{share:.0%} of the outstanding bytes come through {through}{inside}", f"sites/{most.pid}"
        )

    def fits(self, site: FindingSite) -> bool:
        if self.inside and site.inside not in self.inside:
            return False
        return all(any(_frame_fits(f, wanted) for f in site.stack.frames) for wanted in self.frames)

    def seen(self, site: FindingSite) -> list[Frame]:
        """The frames that fit, the outermost for each pattern."""
        return [[f for f in site.stack.frames if _frame_fits(f, wanted)][-1] for wanted in self.frames]


class HookCondition(_Condition, frozen=True, tag="hook", kw_only=True):
    """One of `functions` is hooked by a library whose file name fits `owner`."""

    functions: tuple[str, ...]
    owner: str

    def judge(self, scene: Scene) -> Outcome:
        audited = any(audit.pid == scene.pid for audit in scene.case.hook_audits)
        for hook in scene.hooks:
            if hook.function in self.functions and named(hook.owner_path or "", self.owner):
                return Outcome(
                    "met",
                    f"{hook.function} is hooked ({hook.mechanism}) by {basename(hook.owner_path or '')}",
                    f"hooks/{hook.pid}/{hook.function}",
                )
        wanted = f"{' or '.join(self.functions)} hooked by {self.owner}"
        return Outcome("unmet" if audited else "unknown", f"not seen: {wanted}")


class ModuleCondition(_Condition, frozen=True, tag="module", kw_only=True):
    """A file whose name fits `name` is mapped."""

    name: str

    def judge(self, scene: Scene) -> Outcome:
        found = scene.modules(self.name)
        if found:
            return Outcome("met", f"{basename(found[0].path)} is mapped", f"modules/{scene.pid}/{found[0].path}")
        on_stack = next((f.module for f in scene.frames() if f.module and named(f.module, self.name)), None)
        if on_stack:
            return Outcome("met", f"{basename(on_stack)} is mapped")
        known = any(m.pid == scene.pid for m in scene.case.modules)
        return Outcome("unmet" if known else "unknown", f"no {self.name} is mapped")


class VersionCondition(_Condition, frozen=True, tag="version", kw_only=True):
    """The mapped file's own version is in `range`. Copies can coexist: the copy that is on the finding's stacks counts
    (a copy is what lies in one folder and its subfolders); the others are named. Where the files that count disagree,
    or no copy is on a stack and the copies disagree, the version is unknown."""

    name: str
    range: str
    product: str

    def judge(self, scene: Scene) -> Outcome:
        known = self._read(scene)
        stacked = {f.module for f in scene.frames() if f.module and named(f.module, self.name)}
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
            return Outcome("unknown", f"{self.product} calls itself {first.version!r}, which is no version")
        how = f", by {first.how}" if first.how else ""
        loaded = f"{self.product} {first.version} is loaded ({first.path if others else basename(first.path)}{how})"
        text = f"{loaded}, and is on the stacks; {elsewhere}, and is not" if others else loaded
        return Outcome("met" if inside else "unmet", text, f"modules/{scene.pid}/{first.path}")

    def _read(self, scene: Scene) -> list["_MappedVersion"]:
        """Every mapped file of that name with a version."""
        culprit = scene.finding.culprit
        read: list[tuple[str | None, str | None, str | None]]
        read = [(m.version, m.path, m.version_how) for m in scene.modules(self.name)]
        read += [(culprit.version, culprit.path, None)] if culprit else []
        read += [(h.owner_version, h.owner_path, h.owner_version_how) for h in scene.hooks]
        return [_MappedVersion(v, path, how or "") for v, path, how in read if v and path and named(path, self.name)]


class _MappedVersion(NamedTuple):
    version: str
    path: str
    how: str


def _versions(found: Iterable[_MappedVersion]) -> str:
    """1.19.0 (/a/libucs.so.0), 1.21.0 (/b/libucs.so.0): one file of each version."""
    by_version = {each.version: each.path for each in reversed([*found])}
    return ", ".join(f"{version} ({by_version[version]})" for version in sorted(by_version))


def _is_same_copy(path: str, others: Iterable[str]) -> bool:
    """Whether the file is in the folder of one of `others`, or one of the two folders is in the other (UCX loads its
    transports from lib/ucx)."""
    folder = path.rpartition("/")[0]
    folders = [other.rpartition("/")[0] for other in others]
    return any(folder in (each, each.rpartition("/")[0]) or folder.rpartition("/")[0] == each for each in folders)


class EnvCondition(_Condition, frozen=True, tag="env", kw_only=True):
    """The variable (one of the ` | `-separated names) has a value that `value` (a regular expression, whole value)
    fits. Only the live environment can say that it has not."""

    name: str
    value: str

    def judge(self, scene: Scene) -> Outcome:
        read = [(name, *environment(scene.target, name)) for name in _alternatives(self.name)]
        for name, found, source in read:
            if found is not None and re.fullmatch(self.value, found):
                return Outcome("met", f"{name}={found} ({source})")
        for name, found, source in read:
            if found is not None:
                return Outcome("unmet", f"{name}={found} ({source})")
        live = scene.target is not None and any(v.source == "live" for v in scene.target.environment)
        return Outcome("unmet" if live else "unknown", f"{self.name} is not in the environment that could be read")


class RoleCondition(_Condition, frozen=True, tag="role", kw_only=True):
    """The command line tells this role."""

    role: str

    def judge(self, scene: Scene) -> Outcome:
        role = scene.target.role if scene.target else None
        return Outcome("met" if role == self.role else "unmet", f"the process is {role or 'of no known role'}")


class CmdlineCondition(_Condition, frozen=True, tag="cmdline", kw_only=True):
    """The words of the command line, joined by one space, hold `pattern` (a regular expression) or, with
    `absent = true`, do not. `says`: what that means, in words."""

    pattern: str
    says: str
    absent: bool = False

    def judge(self, scene: Scene) -> Outcome:
        words = scene.target.cmdline if scene.target else ()
        if not words:
            return Outcome("unknown", "the command line could not be read")
        there = re.search(self.pattern, " ".join(words)) is not None
        return Outcome("met" if there is not self.absent else "unmet", self.says)


class LayerCondition(_Condition, frozen=True, tag="layer", kw_only=True):
    """The finding is in one of these layers."""

    layers: tuple[Layer, ...]

    def judge(self, scene: Scene) -> Outcome:
        layer = scene.finding.layer
        return Outcome("met" if layer in self.layers else "unmet", f"the growth is in the layer {layer}")


class HeapCondition(_Condition, frozen=True, tag="heap", kw_only=True):
    """Read from outside, the allocator keeps at least this share of what it obtained, in at least so many arenas."""

    allocator: str
    retained_share: float = 0.0
    arenas: int = 0

    def judge(self, scene: Scene) -> Outcome:
        states = [h for h in scene.case.heaps if h.pid == scene.pid and h.allocator == self.allocator]
        if not states:
            return Outcome("unknown", f"the {self.allocator} heap was not read")
        last = max(states, key=lambda h: h.t_ns)
        if last.retained_bytes is None or not last.system_bytes or (self.arenas and last.arenas is None):
            return Outcome("unknown", f"the {self.allocator} heap was read in part only")
        share = last.retained_bytes / last.system_bytes
        text = f"{self.allocator} keeps {share:.0%} of its memory free and resident"
        if self.arenas:
            text += f", in {last.arenas} arenas"
        enough = share >= self.retained_share and (last.arenas or 0) >= self.arenas
        return Outcome("met" if enough else "unmet", text, f"heaps/{last.pid}/{last.t_ns}")


class HugePagesCondition(_Condition, frozen=True, tag="huge-pages", kw_only=True):
    """Between the first and the last reading, transparent huge pages grew by at least `share` of what the anonymous
    mappings' resident bytes grew by, while their size did not grow as much."""

    share: float = 0.8

    def judge(self, scene: Scene) -> Outcome:
        taken = [snapshot for snapshot in scene.case.snapshots if snapshot.pid == scene.pid]
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
    """In huge pages, resident, and mapped, of the anonymous mappings; None where not all of it was read."""
    huge = resident = size = 0
    for m in snapshot.mappings:
        if not m.path or m.path == "[heap]" or m.path.startswith("[anon"):
            if m.anon_huge is None or m.rss is None:
                return None
            huge, resident, size = huge + m.anon_huge, resident + m.rss, size + m.size
    return (huge, resident, size) if size else None


class UnreadCondition(_Condition, frozen=True, tag="unread", kw_only=True):
    """Something that decides and that this version cannot read: always unknown, so the entry is never firm."""

    what: str

    def judge(self, scene: Scene) -> Outcome:
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
    """An outcome as evidence of a finding; `says` is the entry's own wording of what it means."""
    text = f"{says}: {outcome.text}" if says else outcome.text
    return EvidenceItem(kind=condition.evidence_kind, text=text, ref=outcome.ref)


def environment(target: Target | None, name: str) -> tuple[str | None, str]:
    """(value, where it stands) of a variable of the target; the live environment is believed over that of exec."""
    variables = [v for v in target.environment if v.name == name] if target else []
    for source, words in (("live", "live environment"), ("exec", "environment at exec")):
        for variable in variables:
            if variable.source == source:
                return variable.value, words
    return None, ""


def named(path: str, pattern: str) -> bool:
    """Whether the file name of `path` fits one of the ` | `-separated shell patterns."""
    return any(fnmatchcase(basename(path), p) for p in _alternatives(pattern))


def check_patterns(conditions: Iterable[Condition]) -> None:
    """ValueError when a regular expression or a version range of a condition does not parse."""
    for condition in conditions:
        if isinstance(condition, VersionCondition):
            SpecifierSet(condition.range)
        if isinstance(condition, EnvCondition):
            re.compile(condition.value)
        if isinstance(condition, CmdlineCondition):
            re.compile(condition.pattern)
        if isinstance(condition, SiteCondition):
            bad = [f for f in condition.frames if any("!" not in part for part in _alternatives(f))]
            if bad:
                raise ValueError(f"frame pattern {bad[0]!r} is not file!function")


def _alternatives(pattern: str) -> Sequence[str]:
    return [part.strip() for part in pattern.split(" | ")]


def _frame_fits(frame: Frame, wanted: str) -> bool:
    place = frame.file if frame.kind == "python" else frame.module
    for alternative in _alternatives(wanted):
        file, _, function = alternative.partition("!")
        if fnmatchcase(basename(place or ""), file) and fnmatchcase(frame.function or "", function):
            return True
    return False
