"""The metrics of a watch, to be scraped: an HTTP server in a thread, on the local address unless told otherwise."""

import threading
from collections.abc import Iterable
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from memforensics.errors import UsageError
from memforensics.report.prometheus import metrics
from memforensics.report.watch_line import WatchTick

LOCAL = "127.0.0.1"


class MetricsServer(Collector):
    """Serves what `show` was given last; nothing before that. UsageError when the port cannot be had."""

    def __init__(self, port: int, address: str = LOCAL) -> None:
        self._last: WatchTick | None = None
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        self._server: WSGIServer
        self._thread: threading.Thread
        try:
            self._server, self._thread = start_http_server(port, addr=address, registry=registry)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"cannot listen on {address}:{port}", why=str(error), enable="--prometheus with another PORT"
            ) from error

    @property
    def port(self) -> int:
        return self._server.server_port

    def show(self, tick: WatchTick) -> None:
        self._last = tick

    def collect(self) -> Iterable[Metric]:
        return metrics(self._last) if self._last is not None else ()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
