"""Contradictions within one report, between its headline, growth line, layers, findings and verdict."""

import re
from collections.abc import Iterator

from memforensics.analysis.trend import minimum_rate
from memforensics.analysis.verdict import EXPLAINED_SHARE, minimum_tree_rate
from memforensics.case.model import Case, Diagnosis, Rate
from memforensics.units import NS_PER_S, size_text

CALM = ("steady", "bounded", "retention")
GROWS = ("growing", "leak")
_RATE = re.compile(r"(-?[\d.]+ [KMGT]?i?B)/min")


def contradictions(case: Case, diagnosis: Diagnosis) -> list[str]:
    """One sentence each. Empty if the report is consistent."""
    return [*_verdict(case, diagnosis), *_headline(diagnosis), *_layers(case, diagnosis), *_findings(case, diagnosis)]


def _verdict(case: Case, diagnosis: Diagnosis) -> Iterator[str]:
    word, growth = diagnosis.verdict, diagnosis.growth
    words = {finding.verdict for finding in diagnosis.findings}
    layers = {row.verdict for row in diagnosis.layers}
    if word in CALM:
        if words & {*GROWS}:
            yield f"{word}, and a finding says {words}"
        if layers & {*GROWS}:
            yield f"{word}, and a layer says {layers}"
        known = sum(finding.share or 0.0 for finding in diagnosis.findings if finding.verdict in CALM)
        rate = growth.rate if growth else None
        if growth and rate and known < EXPLAINED_SHARE and rate.low > minimum_tree_rate(case, growth.trend):
            yield f"{word}, and the interval of the growth begins at {size_text(rate.low)}/min"
    if word in GROWS and word not in words and not (word == "growing" and "growing" in layers):
        yield f"{word}, and neither a finding nor a layer says so"
    if word == "growing" and "leak" in words | layers:
        yield "growing, and a finding or a layer says leak"
    if word == "insufficient-data" and (words | layers) & {*GROWS}:
        yield f"insufficient-data, and findings say {words}, layers {layers}"


def _headline(diagnosis: Diagnosis) -> Iterator[str]:
    headline, first = diagnosis.headline, next(iter(diagnosis.findings), None)
    rates = [diagnosis.growth.rate if diagnosis.growth else None, first.rate if first else None]
    known = {size_text(rate.estimate) for rate in rates if rate is not None}
    for text in _RATE.findall(headline):
        if text not in known:
            yield f"the headline says {text}/min: {headline!r}; the report knows {known}"
    if diagnosis.verdict in GROWS and "grow" not in headline:
        yield f"{diagnosis.verdict}, and the headline does not say that it grows: {headline!r}"
    if diagnosis.verdict in ("steady", "insufficient-data") and "grows " in headline:
        yield f"{diagnosis.verdict}, and the headline says that it grows: {headline!r}"
    if diagnosis.growth is None and diagnosis.verdict != "insufficient-data":
        yield f"{diagnosis.verdict}, and no growth was measured"


def _layers(case: Case, diagnosis: Diagnosis) -> Iterator[str]:
    taken = [snapshot.t_ns for snapshot in case.snapshots]
    seconds = (max(taken) - min(taken)) / NS_PER_S if taken else 0.0
    for row in diagnosis.layers:
        if row.verdict == "steady" and row.rate and row.rate.low > minimum_rate(row.bytes or 0, seconds):
            yield f"{row.layer} is steady, and grows by at least {size_text(row.rate.low)}/min"
        found = {finding.verdict for finding in diagnosis.findings if finding.layer == row.layer}
        if "leak" in found and row.verdict != "leak" and row.in_rss:
            yield f"{row.layer} is {row.verdict}, and its finding says leak"
    rates = [row.rate for row in diagnosis.layers if row.in_rss and row.layer != "file" and row.rate]
    whole = diagnosis.growth.rate if diagnosis.growth else None
    if rates and whole and diagnosis.growth and not any("layers sum to" in item.why for item in diagnosis.not_seen):
        total = Rate(estimate=0.0, low=sum(rate.low for rate in rates), high=sum(rate.high for rate in rates))
        slack = minimum_rate(0, diagnosis.growth.trend.seconds)
        if total.low - slack > whole.high or whole.low - slack > total.high:
            yield f"the layers sum to {size_text(total.low)} to {size_text(total.high)}, growth is {whole}"


def _findings(case: Case, diagnosis: Diagnosis) -> Iterator[str]:
    for finding in diagnosis.findings:
        if not 0.0 <= finding.confidence <= 1.0 or not 0.0 <= (finding.share or 0.0) <= 1.0:
            yield f"a confidence of {finding.confidence}, a share of {finding.share}"
        if not finding.next_step:
            yield f"no next step for {finding.title!r}"
        if finding.verdict == "insufficient-data" and "grow" in finding.title:
            yield f"insufficient-data, and a finding's title says that it grows: {finding.title!r}"
        if finding.verdict == "steady":
            yield f"a finding that is steady: {finding.title!r}"
    if diagnosis.verdict in GROWS and not diagnosis.next_step:
        yield "no next step"
    ended = {target.pid for target in case.targets if target.left_how is not None or target.exited_ns is not None}
    for step in (diagnosis.next_step or "", *(finding.next_step or "" for finding in diagnosis.findings)):
        named = re.search(r"(?:memforensics [\w-]+|jcmd|kill -\w+) (\d+)", step)
        if named and int(named[1]) in ended:
            yield f"a step for a process that has ended: {step!r}"
