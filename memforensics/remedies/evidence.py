"""What a catalogue condition reads from a case, and its result. Pure.

`unknown` is a result of its own: a version that could not be read is not a wrong version, and a variable that is
missing in the environment at exec may still be set (programs set variables later)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from memforensics.case.model import Case, Finding, Frame, Hook, Module, Target
from memforensics.text import basename

State = Literal["met", "unmet", "unknown"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one condition, what the evidence shows, and the record that it was read from."""

    state: State
    text: str
    ref: str = ""


@dataclass(frozen=True, slots=True)
class MatchContext:
    """One finding and the evidence of its process."""

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
        return [m for m in self.case.modules if m.pid == self.pid and file_name_matches(m.path, pattern)]

    def frames(self) -> Iterator[Frame]:
        for site in self.finding.sites:
            yield from site.stack.frames


def environment(target: Target | None, name: str) -> tuple[str | None, str]:
    """The value of a variable and where it was read: the live environment, else the environment at exec."""
    variables = [v for v in target.environment if v.name == name] if target else []
    for source, words in (("live", "live environment"), ("exec", "environment at exec")):
        for variable in variables:
            if variable.source == source:
                return variable.value, words
    return None, ""


def alternatives(pattern: str) -> Sequence[str]:
    """The parts of a pattern that are separated by ` | `."""
    return [part.strip() for part in pattern.split(" | ")]


def file_name_matches(path: str, pattern: str) -> bool:
    """Whether the file name of `path` matches one of the shell patterns."""
    return any(fnmatchcase(basename(path), p) for p in alternatives(pattern))


def frame_matches(frame: Frame, pattern: str) -> bool:
    """Whether the frame matches one of the `file!function` patterns. The file of a Python frame is its source file."""
    place = frame.file if frame.kind == "python" else frame.module
    for alternative in alternatives(pattern):
        file, _, function = alternative.partition("!")
        if fnmatchcase(basename(place or ""), file) and fnmatchcase(frame.function or "", function):
            return True
    return False
