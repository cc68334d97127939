"""A small transformer behind uvicorn, on the CPU. Prints the port, then four times a second the served requests and the
CPU seconds of the process. With --grow: no server; torch is loaded, and 1 MiB is mapped, touched and kept 20 times a
second. Runs in an environment of its own, which tracer_workloads.py makes."""

import argparse
import asyncio
import mmap
import socket
import threading
import time
from typing import Any

import torch

WIDTH, VOCABULARY = 256, 8192


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(WIDTH, 8, 4 * WIDTH, batch_first=True, dropout=0.0)
        self.embed = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.layers = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = torch.nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(tokens)))


def serve() -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    torch.manual_seed(1)
    torch.set_num_threads(1)
    model, served = Model().eval(), 0

    def infer(tokens: list[int]) -> list[int]:
        with torch.inference_mode():
            logits = model(torch.tensor([tokens]))
            return logits[0, -1].topk(5).indices.tolist()  # type: ignore[no-any-return]

    async def complete(request: Request) -> JSONResponse:
        nonlocal served
        body: dict[str, Any] = await request.json()
        answer = await asyncio.to_thread(infer, body["tokens"])
        served += 1
        return JSONResponse({"next": answer})

    def report() -> None:
        while True:
            print(f"served {served} failed 0 at {time.monotonic():.6f} cpu {time.process_time():.6f}", flush=True)
            time.sleep(0.25)

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(64)
    app = Starlette(routes=[Route("/complete", complete, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_keep_alive=3600))
    print(f"port {listening.getsockname()[1]}", flush=True)
    threading.Thread(target=report, daemon=True).start()
    server.run(sockets=[listening])


def grow() -> None:
    torch.ones(64, 64) @ torch.ones(64, 64)
    kept = []
    for count in range(100_000):
        memory = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[0] = 1
        kept.append(memory)
        if count % 5 == 0:
            print(f"served {count} failed 0", flush=True)
        time.sleep(0.05)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--grow", action="store_true")
grow() if parser.parse_args().grow else serve()
