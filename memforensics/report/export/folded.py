"""Folded stacks of outstanding memory: a line `outermost;...;leaf bytes` for each stack. For flamegraph.pl, inferno."""

from memforensics.case.model import Frame
from memforensics.report.export.profile import Profile, frame_name, frame_place, root_first


def folded(profile: Profile) -> bytes:
    """UTF-8. The first frame of each line is the process. Equal stacks are one line."""
    lines: dict[str, int] = {}
    for site in profile.sites:
        if site.outstanding_bytes > 0:
            names = [f"pid {profile.process_name(site.pid)}", *map(_name, root_first(site))]
            line = ";".join(name.replace(";", ":") for name in names)
            lines[line] = lines.get(line, 0) + site.outstanding_bytes
    return "".join(f"{line} {size}\n" for line, size in lines.items()).encode()


def _name(frame: Frame) -> str:
    place = frame_place(frame)
    if not place:
        return frame_name(frame)
    return f"{frame_name(frame)} ({place})" if frame.kind == "python" else f"{frame_name(frame)} [{place}]"
