"""A tick of watch as Prometheus metrics. Sizes are in bytes, rates in bytes a second. A value that was not read has no
series."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric

from memforensics.case.model import EXIT_CODES
from memforensics.case.views import WatchTick
from memforensics.text import utf8


def metrics(tick: WatchTick) -> Iterator[Metric]:
    """All metrics of one tick."""
    case, diagnosis, now = tick.case, tick.diagnosis, tick.now
    root = case.target(case.meta.root_pid) if case.meta.root_pid is not None else None
    if root is not None:
        process = {"pid": str(root.pid), "comm": utf8(root.comm), "role": root.role or ""}
        yield InfoMetricFamily("memforensics_target", "The process that is watched.", value=process)
    yield _gauge("memforensics_processes", "Processes of the tree.", len(now))
    yield _gauge("memforensics_rss_bytes", "Resident memory of the tree.", tick.rss)
    each = GaugeMetricFamily(
        "memforensics_process_rss_bytes", "Resident memory of one process.", labels=["pid", "comm"]
    )
    for pid, sample in now.items():
        target = case.target(pid)
        each.add_metric([str(pid), utf8(target.comm) if target else ""], sample.rss)
    yield each
    layers = GaugeMetricFamily(
        "memforensics_layer_bytes", "Memory by layer; layers in RSS sum to RSS.", labels=["layer", "in_rss"]
    )
    for row in diagnosis.layers:
        if row.bytes is not None:
            layers.add_metric([row.layer, "true" if row.in_rss else "false"], row.bytes)
    yield layers
    read_s = tick.age_s(tick.ages.layers_ns)
    if read_s is not None:
        yield _gauge("memforensics_layer_age_seconds", "How long ago the layers were read.", read_s)
    growth = diagnosis.growth
    if growth is not None and growth.rate is not None:
        edges = (("estimate", growth.rate.estimate), ("low", growth.rate.low), ("high", growth.rate.high))
        rate = GaugeMetricFamily(
            "memforensics_growth_bytes_per_second",
            f"Growth of {growth.metric}, with the edges of its {growth.rate.confidence:.0%} interval.",
            labels=["edge"],
        )
        for edge, bytes_per_minute in edges:
            rate.add_metric([edge], bytes_per_minute / 60.0)
        yield rate
    verdict = GaugeMetricFamily(
        "memforensics_verdict", "1 for the current verdict, 0 for the others.", labels=["verdict"]
    )
    for word in EXIT_CODES:
        verdict.add_metric([word], float(word == diagnosis.verdict))
    yield verdict
    if growth is not None and growth.limit_bytes is not None:
        yield _gauge("memforensics_limit_bytes", "The lowest memory limit of the cgroup.", growth.limit_bytes)
    if growth is not None and growth.seconds_to_limit is not None:
        yield _gauge(
            "memforensics_seconds_to_limit", "Seconds until the limit is reached at this rate.", growth.seconds_to_limit
        )


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)
