"""Whose code a file is."""

import pytest

from memforensics.analysis.application import is_application_file


@pytest.mark.parametrize(
    "path",
    [
        "/srv/app/server.py",
        "server.py",
        "/home/me/src/mypackage/api.py",  # an editable install
        "/opt/venv/bin/serve",
        "/usr/lib/myapp/worker.py",
        "/app/lib/python/handlers.py",
        "/srv/site-packages.py",
        "<string>",
        "<stdin>",
        "<ipython-input-3-abc>",
    ],
)
def test_application(path: str) -> None:
    assert is_application_file(path)


@pytest.mark.parametrize(
    "path",
    [
        None,
        "",
        "/usr/lib/python3.11/threading.py",
        "/opt/python/lib64/python3.12/asyncio/events.py",
        "/opt/python/lib/python3.13t/json/decoder.py",
        "/usr/lib/python3/dist-packages/bcc/__init__.py",
        "/opt/venv/lib/python3.11/site-packages/vllm/engine.py",
        "C/Lib/site-packages/x.py",
        "/usr/lib/python311.zip/json/__init__.py",
        "<frozen importlib._bootstrap>",
        "<frozen runpy>",
        "<attrs generated init app.Thing>",
        "<__array_function__ internals>",
    ],
)
def test_not_application(path: str | None) -> None:
    assert not is_application_file(path)


def test_the_target_may_say_where_its_library_is() -> None:
    assert is_application_file("/opt/odd/stdlib/threading.py")
    assert not is_application_file("/opt/odd/stdlib/threading.py", ["/opt/odd/stdlib/"])
    assert is_application_file("/opt/odd/stdlib2/threading.py", ["/opt/odd/stdlib", ""])
