"""Small real programs for benchmarks/verdicts.py: healthy ones that look like leaks, and leaks that begin late.

    python benchmarks/verdict_programs.py KIND [SECONDS]

It prints "ready" and works until it is killed. SECONDS: when a `late-` program begins to leak. All of them do some work
all the time, as a server does.
"""

import asyncio
import collections
import ctypes
import functools
import gc
import mmap
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

MIB = 1 << 20
BEGAN = time.monotonic()


def passed() -> float:
    return time.monotonic() - BEGAN


def private(size: int) -> mmap.mmap:
    """A private anonymous mapping with every page touched."""
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, size, 4096):
        block[offset] = 1
    return block


def paced(rate: float, step: Callable[[int], object]) -> None:
    """Calls `step(n)` `rate` times a second, for ever."""
    done = 0
    while True:
        while done < passed() * rate:
            step(done)
            done += 1
        time.sleep(0.005)


# --- healthy ----------------------------------------------------------------------------------------------------------


def lru_fills() -> None:
    """An lru_cache with a maxsize that is not reached during the observation."""

    @functools.lru_cache(maxsize=200_000)
    def answer(key: int) -> bytes:
        return os.urandom(4096)

    paced(300, answer)


def fifo_fills() -> None:
    """A queue of mappings that is full after 40 s."""
    kept: collections.deque[mmap.mmap] = collections.deque(maxlen=800)
    paced(20, lambda n: kept.append(private(256 * 1024)))


def ttl_store() -> None:
    """Sessions that expire after 20 to 60 s."""
    sessions: dict[int, tuple[float, bytes]] = {}

    def one(n: int) -> None:
        sessions[n] = (passed() + random.uniform(20, 60), os.urandom(20_000))
        if n % 50 == 0:
            for key in [key for key, (end, _) in sessions.items() if end < passed()]:
                del sessions[key]

    paced(100, one)


def cycles() -> None:
    """Garbage in reference cycles, which the collector frees rarely."""
    gc.set_threshold(20_000, 50, 100)

    def one(n: int) -> None:
        node: list[object] = [bytearray(3000)]
        node.append(node)

    paced(3000, one)


def pool_grows() -> None:
    """A thread pool that grows to its bound."""
    pool = ThreadPoolExecutor(64)

    def work() -> None:
        data = [bytes(1000) for _ in range(500)]
        time.sleep(3)
        del data

    paced(4, lambda n: pool.submit(work))


def threads_end() -> None:
    """A thread for each request, which ends."""

    def work() -> None:
        bytearray(200_000)
        time.sleep(0.02)

    paced(50, lambda n: threading.Thread(target=work).start())


def churn() -> None:
    """Mappings that come and go."""
    paced(2000, lambda n: private(64 * 1024).close())


def warm_up() -> None:
    """200 MiB within 6 s, then steady work."""
    kept = []

    def one(n: int) -> None:
        if passed() < 6:
            kept.append(bytearray(n % 3 * 100_000 + 1))
        sum(os.urandom(1000))

    paced(300, one)


def arenas() -> None:
    """Eight threads that allocate and free blocks of random sizes."""

    def work(seed: int) -> None:
        chance, held = random.Random(seed), [b""] * 400
        while True:
            held[chance.randrange(400)] = bytes(chance.randrange(600, 60_000))
            time.sleep(0.001)

    for seed in range(8):
        threading.Thread(target=work, args=(seed,), daemon=True).start()
    paced(1, lambda n: None)


def recycled() -> None:
    """Three workers that grow and are replaced after 8 s."""

    def worker() -> None:
        kept, end = [], time.monotonic() + random.uniform(6, 10)
        while time.monotonic() < end:
            kept.append(bytearray(100_000))
            time.sleep(0.02)
        os._exit(0)

    def spawn() -> None:
        if os.fork() == 0:
            worker()

    for _ in range(3):
        spawn()
    while True:
        os.wait()
        spawn()


def tasks() -> None:
    """asyncio tasks in bursts."""

    async def one() -> None:
        data = [str(n) for n in range(2000)]
        await asyncio.sleep(random.expovariate(2))
        del data

    async def main() -> None:
        live: set[asyncio.Task[None]] = set()
        while True:
            for _ in range(random.choice((0, 0, 5, 40))):
                task = asyncio.create_task(one())
                live.add(task)
                task.add_done_callback(live.discard)
            await asyncio.sleep(0.1)

    asyncio.run(main())


def saw_tooth() -> None:
    """A buffer that is flushed about once per observation."""
    kept: list[bytes] = []

    def one(n: int) -> None:
        kept.append(os.urandom(20_000))
        if len(kept) > 1200:
            kept.clear()

    paced(100, one)


def file_pages() -> None:
    """A large file that is mapped and read in parts: page cache."""
    path = f"/var/tmp/memforensics-verdicts-{os.getpid()}"
    with open(path, "wb") as file:
        file.truncate(0)
        for _ in range(100):
            file.write(os.urandom(MIB))
    with open(path, "rb") as file:
        os.unlink(path)
        data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        paced(500, lambda n: data[n * 4096 % len(data)])


def requests() -> None:
    """Requests with working memory of very different sizes."""

    def one(n: int) -> None:
        parts = [bytes(random.randrange(100, 100_000)) for _ in range(random.choice((1, 5, 200)))]
        b"".join(parts)

    paced(40, one)


# --- leaks that begin late --------------------------------------------------------------------------------------------


def late(leak: Callable[[], object], rate: float) -> None:
    begin = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    leaked = 0
    while True:
        sum(os.urandom(200))
        while leaked < (passed() - begin) * rate:
            leak()
            leaked += 1
        time.sleep(0.01)


def late_list() -> None:
    """Python objects in a list: 60 MiB a minute."""
    kept: list[bytes] = []
    late(lambda: kept.append(os.urandom(20_000)), MIB / 20_000)


def late_mappings() -> None:
    """Mappings in a list: 120 MiB a minute."""
    kept: list[mmap.mmap] = []
    late(lambda: kept.append(private(256 * 1024)), 8)


def late_malloc() -> None:
    """malloc without free: 60 MiB a minute."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    late(lambda: libc.memset(libc.malloc(4000), 1, 4000), MIB / 4000)


KINDS = {
    name.replace("_", "-"): kind
    for name, kind in list(globals().items())
    if callable(kind)
    and getattr(kind, "__module__", "") == __name__
    and kind.__doc__
    and kind.__code__.co_argcount == 0
    and name not in ("passed",)
}


if __name__ == "__main__":
    print("ready", flush=True)
    KINDS[sys.argv[1]]()
