"""A web application in two forms: `app` (FastAPI) for uvicorn, `wsgi` for gunicorn. /keep keeps a mapping of 1 MiB in
its own code. /big returns 4 MiB of text to the framework, which encodes it after the handler has returned."""

import mmap
from collections.abc import Callable, Iterable

KEPT: list[mmap.mmap] = []
SIZE = 1 << 20


def keep() -> str:
    block = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # LINE keep
    block.write(b"x" * SIZE)
    KEPT.append(block)
    return "kept"


def wsgi(environ: dict[str, str], start: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    said = keep() if environ["PATH_INFO"] == "/keep" else "ready"
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(said)))])
    return [said.encode()]


try:
    from fastapi import FastAPI
except ImportError:  # the tests' own environment has none
    pass
else:
    app = FastAPI()
    TEXT = "é" * (2 * SIZE)

    @app.get("/")
    async def ready() -> str:
        return "ready"

    @app.get("/keep")
    async def keep_it() -> str:
        return keep()

    @app.get("/big")
    async def big() -> str:
        return TEXT
