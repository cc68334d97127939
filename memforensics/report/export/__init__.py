"""Sites for other programs: folded stacks, speedscope, pprof, Perfetto, and our own HTML page.

Each format is one pure function of a `Profile`, so a trace that just ended and its case file give the same bytes.
"""

from collections.abc import Callable
from typing import Literal, get_args

from memforensics.case.views import TraceView
from memforensics.report.export.profile import Profile, profile_of

ExportFormat = Literal["folded", "speedscope", "pprof", "perfetto", "html"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
BINARY_FORMATS: frozenset[ExportFormat] = frozenset({"pprof", "perfetto"})


def export(profile: Profile, form: ExportFormat) -> bytes:
    """The whole file."""
    return _writer(form)(profile)


def export_view(view: TraceView, form: ExportFormat) -> bytes:
    """The selected sites for another program."""
    return export(profile_of(view), form)


def _writer(form: ExportFormat) -> Callable[[Profile], bytes]:
    if form == "folded":
        from memforensics.report.export.folded import folded

        return folded
    if form == "speedscope":
        from memforensics.report.export.speedscope import speedscope

        return speedscope
    if form == "pprof":
        from memforensics.report.export.pprof import pprof

        return pprof
    if form == "perfetto":
        from memforensics.report.export.perfetto import perfetto

        return perfetto
    from memforensics.report.html.icicle import icicle

    return icicle
