"""The metrics server of a watch with hostile clients."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import python, running

pytestmark = pytest.mark.live


@pytest.fixture
def watched() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A watch with metrics, and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running(python("watch_grower.py", "flat", "0")) as child:
        words = [sys.executable, "-m", "memforensics", "watch", str(child.pid), "--json", "--duration", "60s"]
        watch = subprocess.Popen([*words, "--prometheus", str(port)], stdout=subprocess.PIPE, text=True)
        try:
            assert watch.stdout is not None
            watch.stdout.readline()
            yield watch, port
        finally:
            watch.kill()
            watch.wait()
            assert watch.stdout is not None
            watch.stdout.close()


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return str(answer.read().decode())


def scrape_when_free(port: int) -> str:
    """The metrics, once the server has noticed that the connections above its cap are closed."""
    end = time.monotonic() + 20
    while True:
        try:
            return scrape(port)
        except OSError:  # at the cap it closes a new connection at once
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def half_sent(port: int, count: int) -> list[socket.socket]:
    """Connections that begin a request and do not end it."""
    out = []
    for _ in range(count):
        with_timeout = socket.create_connection(("127.0.0.1", port), timeout=10)
        with contextlib.suppress(OSError):
            with_timeout.send(b"GET /metrics HTTP/1.1\r\nX: ")
        out.append(with_timeout)
    return out


def test_incomplete_requests_do_not_end_the_watch(watched: tuple[subprocess.Popen[str], int]) -> None:
    watch, port = watched
    assert "memforensics_rss_bytes" in scrape(port)
    before = threads(watch.pid)
    held = half_sent(port, 600) + half_sent(port, 900)
    try:
        assert watch.poll() is None
        assert threads(watch.pid) <= before + 1
        assert len(list(Path(f"/proc/{watch.pid}/fd").iterdir())) < 600
    finally:
        for connection in held:
            connection.close()
    assert "memforensics_rss_bytes" in scrape_when_free(port)
    assert watch.poll() is None


def test_slow_clients_are_disconnected_and_others_served(watched: tuple[subprocess.Popen[str], int]) -> None:
    _watch, port = watched
    held = half_sent(port, 40)
    try:
        ended = threading.Event()

        def try_again() -> None:
            while not ended.is_set():
                try:
                    scrape(port)
                    ended.set()
                except OSError:
                    time.sleep(0.2)

        trying = threading.Thread(target=try_again)
        trying.start()
        trying.join(30)
        assert ended.is_set()
    finally:
        ended.set()
        for connection in held:
            connection.close()


@pytest.mark.parametrize("request_", [b"\0" * 20000, b"POST / HTTP/1.1\r\n\r\n", b"GET /etc/passwd HTTP/1.1\r\n\r\n"])
def test_other_requests_get_an_error(watched: tuple[subprocess.Popen[str], int], request_: bytes) -> None:
    _watch, port = watched
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        try:
            connection.sendall(request_)
            answer = connection.recv(100)
        except ConnectionError:
            answer = b""
    assert b"200 OK" not in answer
    assert "memforensics_rss_bytes" in scrape(port)
