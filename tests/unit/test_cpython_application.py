"""Whether a Python file is application or library code."""

import pytest

from memforensics.analysis.application import is_application, is_application_file, is_launcher, package_path


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
        "/home/me/.local/lib/python3.11/site-packages/uvicorn/server.py",
        "/opt/conda/envs/serve/lib/python3.12/site-packages/fastapi/routing.py",
        "/srv/odd place/.venv/lib64/python3.13/site-packages/starlette/routing.py",
        "/home/me/.pex/installed_wheels/0/ab/uvicorn-0.30-py3-none-any.whl/uvicorn/main.py",
        "/srv/app/__pypackages__/3.11/lib/uvicorn/main.py",
        "<attrs generated init app.Thing>",
        "<__array_function__ internals>",
    ],
)
def test_not_application(path: str | None) -> None:
    assert not is_application_file(path)


SITE = "/opt/venv/lib/python3.11/site-packages"


@pytest.mark.parametrize(
    ("path", "function", "calls"),
    [
        ("/opt/venv/bin/uvicorn", "<module>", f"{SITE}/uvicorn/main.py"),
        ("/usr/bin/gunicorn", "<module>", "/usr/lib/python3/dist-packages/gunicorn/app/wsgiapp.py"),
        ("/opt/venv/bin/black", "<module>", None),  # its main() is compiled
        ("C/Scripts/uvicorn", "<module>", f"{SITE}/uvicorn/main.py"),
        (f"{SITE}/uvicorn/__main__.py", "<module>", f"{SITE}/uvicorn/main.py"),
        ("<frozen runpy>", "_run_module_as_main", "<frozen runpy>"),
        ("<string>", "<module>", "/usr/lib/python3.11/multiprocessing/spawn.py"),
        ("<string>", "__init__", f"{SITE}/attr/_make.py"),  # a dataclass's
        ("<string>", "Point.__new__", None),
    ],
)
def test_code_that_only_starts_other_code_is_not_application(path: str, function: str, calls: str | None) -> None:
    assert not is_application(path, function, calls)


@pytest.mark.parametrize(
    ("path", "function", "calls"),
    [
        ("/home/me/bin/serve", "main", f"{SITE}/uvicorn/main.py"),
        ("/home/me/bin/serve", "<module>", "/srv/app/loop.py"),
        ("/opt/app/bin/serve.py", "<module>", f"{SITE}/uvicorn/main.py"),
        ("/srv/app/__main__.py", "<module>", f"{SITE}/uvicorn/main.py"),
        ("/srv/app.pyz/app/loop.py", "run", None),
        ("<string>", "<module>", f"{SITE}/uvicorn/main.py"),
        ("<string>", "keep", None),
    ],
)
def test_a_script_that_does_work_is_application(path: str, function: str, calls: str | None) -> None:
    assert is_application(path, function, calls)


def test_launchers() -> None:
    assert is_launcher("/opt/venv/bin/uvicorn", "<module>")
    assert is_launcher("/usr/lib/python3.8/runpy.py", "_run_code")
    assert is_launcher("<frozen importlib._bootstrap>", "_call_with_frames_removed")
    assert not is_launcher(f"{SITE}/uvicorn/main.py", "run")


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (f"{SITE}/starlette/responses.py", "starlette/responses.py"),
        ("/usr/lib/python3/dist-packages/bcc/table.py", "bcc/table.py"),
        ("/usr/lib/python3.11/asyncio/events.py", "asyncio/events.py"),
        ("/srv/app/server.py", "server.py"),
        ("<frozen os>", "<frozen os>"),
    ],
)
def test_the_path_of_a_package(path: str, shown: str) -> None:
    assert package_path(path) == shown


def test_the_target_may_say_where_its_library_is() -> None:
    assert is_application_file("/opt/odd/stdlib/threading.py")
    assert not is_application_file("/opt/odd/stdlib/threading.py", ["/opt/odd/stdlib/"])
    assert is_application_file("/opt/odd/stdlib2/threading.py", ["/opt/odd/stdlib", ""])
