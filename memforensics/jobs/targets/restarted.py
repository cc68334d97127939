"""A target that is named by what it is, not by a PID: the one there is, or the one that came back."""

from memforensics.errors import UsageError
from memforensics.jobs.targets import choose as targets
from memforensics.jobs.targets.containers import container_roots


def only_root(container: str) -> int:
    """The one outermost process of a container. UsageError when there is none, or more than one."""
    roots = container_roots(container)
    if len(roots) > 1:
        listed = ", ".join(map(str, roots))
        raise UsageError(
            f"container {container!r} has {len(roots)} outermost processes: {listed}", enable="name one PID"
        )
    return roots[0]


def back(name: str | None, cmdline: str | None, container: str | None) -> int | None:
    """The PID of what matches now; None while nothing does. Of several trees the root of the largest."""
    if container is not None:
        try:
            return only_root(container)
        except UsageError:
            return None
    found = targets.roots(targets.find(name=name, cmdline=cmdline))
    return found[0].pid if found else None
