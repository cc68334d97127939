"""The metrics of a watch over HTTP, by default on the loopback address.

Anyone who reaches the port may try to block it, so there is one thread, a limit on connections, a deadline and a size
limit for each request, and one rendering per tick however often it is requested. No error here reaches the watch.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from memforensics.case.views import WatchTick
from memforensics.errors import UsageError

LOCAL = "127.0.0.1"
MAX_CONNECTIONS = 32  # a further one is closed at once
REQUEST_SECONDS = 5.0  # for a request and its response
MAX_REQUEST = 8 * 1024  # bytes of the request head


class MetricsServer(Collector):
    """Serves the tick that `show` got last; nothing before the first. UsageError if the port cannot be used."""

    def __init__(self, metrics: Callable[[WatchTick], Iterable[Metric]], port: int, address: str = LOCAL) -> None:
        self._metrics = metrics
        self._last: WatchTick | None = None
        self._text: tuple[WatchTick | None, bytes] = None, b""
        self._open = 0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda loop, context: None)  # a broken connection is the client's problem
        self._thread = threading.Thread(target=self._loop.run_forever, name="metrics", daemon=True)
        self._thread.start()
        try:
            self._server = self._call(asyncio.start_server(self._serve, address, port, limit=MAX_REQUEST))
        except (OSError, OverflowError) as error:
            self._stop()
            raise UsageError(
                f"cannot listen on {address}:{port}", why=str(error), enable="--prometheus with another port"
            ) from error

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    def show(self, tick: WatchTick) -> None:
        self._last = tick

    def collect(self) -> Iterable[Metric]:
        return self._metrics(self._last) if self._last is not None else ()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._stop()

    def _call(self, what: Coroutine[Any, Any, asyncio.Server]) -> asyncio.Server:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._open += 1
        try:
            await asyncio.wait_for(self._answer(reader, writer), REQUEST_SECONDS)
        except (TimeoutError, asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass  # too slow, too long, or the client left
        finally:
            self._open -= 1
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            status, body = b"405 Method Not Allowed", b""
        elif path not in (b"/", b"/metrics"):
            status, body = b"404 Not Found", b""
        else:
            status, body = b"200 OK", self._latest()
        writer.write(
            b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
            % (status, CONTENT_TYPE_LATEST.encode(), len(body))
        )
        if method != b"HEAD":
            writer.write(body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    def _latest(self) -> bytes:
        tick = self._last
        if self._text[0] is not tick or not self._text[1]:
            self._text = tick, generate_latest(self._registry)
        return self._text[1]
