"""The service: worker threads take inference requests at a steady rate and stage each tensor in a mapping of its own.

It is an ordinary program: every request gets the right answer, and every buffer is unmapped. It leaks nevertheless with
UCX 1.17.0 to 1.20.x: `ucp_init` makes UCX intercept munmap in the whole process, and each munmap adds an entry to a
queue that is never processed (144 bytes each; openucx/ucx PR 9513 to PR 11248).

--weights is memory that is touched at the start, stays by design and does not grow.
"""

import argparse
import ctypes
import mmap
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

MIB = 1024 * 1024
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TENSORS_PER_REQUEST = 64  # K and V of 32 layers
UNPACED_BATCH = 16  # requests between two readings of the clock at full speed


# --- the transport, which loads UCX into the process ---------------------------------------------------------------


class Transport:
    """A UCX context, as a KV-cache connector such as NIXL opens one. Opening it is enough; nothing is sent."""

    # ucp/api/ucp.h: UCP_PARAM_FIELD_FEATURES, UCP_FEATURE_TAG | UCP_FEATURE_RMA. The structure begins with the mask
    # and the features. All other fields are ignored unless their bit is set in the mask.
    FIELD_FEATURES = 1 << 0
    FEATURES = 1 << 0 | 1 << 1

    def __init__(self) -> None:
        import libucx  # type: ignore[import-not-found]  # the wheel's own loader: dlopens its copies of libucm, libucs, libuct, libucp

        self.library = libucx.load_library()[-1]
        major, minor, release = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
        self.library.ucp_get_version(ctypes.byref(major), ctypes.byref(minor), ctypes.byref(release))
        self.version = f"{major.value}.{minor.value}.{release.value}"
        config, self.context = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(self.library.ucp_config_read(None, None, ctypes.byref(config)), "ucp_config_read")
        params = (ctypes.c_uint64 * 64)(self.FIELD_FEATURES, self.FEATURES)
        status = self.library.ucp_init_version(major, minor, ctypes.byref(params), config, ctypes.byref(self.context))
        self._check(status, "ucp_init_version")
        self.library.ucp_config_release(config)

    @staticmethod
    def _check(status: int, what: str) -> None:
        if status:
            raise RuntimeError(f"{what} failed with ucs_status_t {status}")


# --- the model -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    number: int
    prompt: bytes

    @property
    def expected(self) -> int:
        return zlib.crc32(self.prompt, TENSORS_PER_REQUEST)


@dataclass(slots=True)
class Model:
    """Memory like that of a model: weights that stay, and staging buffers for each request."""

    weights_bytes: int
    buffer_bytes: int
    flags: int  # mmap's: MAP_SHARED or MAP_PRIVATE, anonymous
    weights: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.weights = bytearray(self.weights_bytes)
        for page in range(0, self.weights_bytes, PAGE_BYTES):
            self.weights[page] = 1

    def run_inference(self, prompt: bytes) -> int:
        """One forward pass: the tensors of each layer are staged and read back. The answer depends on all of them."""
        staged = 0
        for tensor in range(TENSORS_PER_REQUEST):
            staged += self.stage_tensor(tensor, prompt)
        return zlib.crc32(prompt, staged)

    def stage_tensor(self, tensor: int, prompt: bytes) -> int:
        """Copies a tensor into a buffer of its own, as for a transfer, and frees the buffer. 1 if the copy is right."""
        staging = mmap.mmap(-1, self.buffer_bytes, flags=self.flags)
        staging[:8] = prompt[:8]
        staging[8] = tensor
        arrived = staging[:8] == prompt[:8] and staging[8] == tensor
        staging.close()
        return int(arrived)


# --- the server ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """Requests answered, by one thread."""

    served: int = 0
    failed: int = 0


class Server:
    """Worker threads with one queue. `rate` in requests per second; None means full speed."""

    def __init__(self, model: Model, *, threads: int, rate: float | None, max_rss_bytes: int) -> None:
        self.model, self.rate, self.max_rss_bytes = model, rate, max_rss_bytes
        self.requests: queue.Queue[Request | None] = queue.Queue(maxsize=1024)
        self.tallies = [Tally() for _ in range(threads)]
        self.stopping, self.capped, self.asked = threading.Event(), threading.Event(), threading.Event()
        work = self.worker_loop if rate is not None else self.unpaced_worker_loop
        self.threads = [
            threading.Thread(target=work, args=(tally,), name=f"worker-{number}", daemon=True)
            for number, tally in enumerate(self.tallies)
        ]

    def worker_loop(self, tally: Tally) -> None:
        while (request := self.requests.get()) is not None:
            self.handle_request(request, tally)

    def unpaced_worker_loop(self, tally: Tally) -> None:
        for request in self.arrivals():
            if request.number % UNPACED_BATCH == 0 and (self.stopping.is_set() or self.capped.is_set()):
                break
            self.handle_request(request, tally)

    def handle_request(self, request: Request, tally: Tally) -> None:
        try:
            answer = self.model.run_inference(request.prompt)
        except (OSError, ValueError):
            answer = None
        if answer == request.expected:
            tally.served += 1
        else:
            tally.failed += 1

    @staticmethod
    def arrivals() -> Iterator[Request]:
        number = 0
        while True:
            yield Request(number, number.to_bytes(8, "little") * 4)
            number += 1

    def accept_requests(self, until: float | None, report_every: float) -> None:
        """The main thread: adds requests at the rate until `until` (monotonic seconds) and checks the RSS limit."""
        for thread in self.threads:
            thread.start()
        began = time.monotonic()
        arrivals, let_in, next_report = self.arrivals(), 0, began + report_every
        while not self.stopping.is_set() and (until is None or time.monotonic() < until):
            now = time.monotonic()
            if not self.capped.is_set() and rss_bytes() >= self.max_rss_bytes:
                self.capped.set()
                print(f"capped: RSS reached {self.max_rss_bytes // MIB} MiB; no more requests are accepted", flush=True)
            if self.rate is not None and not self.capped.is_set():
                due = int((now - began) * self.rate)
                while let_in < due and not self.requests.full():
                    self.requests.put(next(arrivals))
                    let_in += 1
                began += max(0.0, (due - let_in) / self.rate)  # if the service is too slow, late requests are dropped
            if now >= next_report or self.asked.is_set():
                self.asked.clear()
                self.report()
                next_report = now + report_every
            self.stopping.wait(0.005 if self.rate is not None and not self.capped.is_set() else 0.05)

    def finish(self) -> None:
        self.stopping.set()
        for _ in self.threads:
            self.requests.put(None)
        for thread in self.threads:
            thread.join(timeout=10)
        self.report()

    def report(self) -> None:
        served, failed = sum(t.served for t in self.tallies), sum(t.failed for t in self.tallies)
        print(f"served {served} failed {failed}", flush=True)


def rss_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * PAGE_BYTES


def serve(options: argparse.Namespace) -> int:
    """One serving process. Exit code 1 if an answer was wrong."""
    transport = Transport() if not options.no_ucx else None
    model = Model(options.weights, options.buffer, mmap.MAP_ANONYMOUS | options.sharing)
    server = Server(model, threads=options.threads, rate=options.rate, max_rss_bytes=options.max_rss)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stopping.set())
    signal.signal(signal.SIGUSR1, lambda *_: server.asked.set())
    until = time.monotonic() + options.seconds if options.seconds else None
    version = f"ucx={transport.version}" if transport else "ucx=none"
    print(f"ready pid={os.getpid()} {version} threads={options.threads}", flush=True)
    server.accept_requests(until, options.report_every)
    server.finish()
    return int(any(tally.failed for tally in server.tallies))


# --- a parent with workers -----------------------------------------------------------------------------------------


def supervise(options: argparse.Namespace) -> int:
    """A parent without UCX that starts `--workers` serving processes, which share the rate."""
    command = [sys.executable, "-u", os.path.abspath(__file__), *without_workers(sys.argv[1:])]
    if options.rate is not None:
        command += ["--rate", str(options.rate / options.workers)]
    workers = [
        subprocess.Popen([*command], stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
        for _ in range(options.workers)
    ]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: tell_all(workers, signal.SIGTERM))
    signal.signal(signal.SIGUSR1, lambda *_: tell_all(workers, signal.SIGUSR1))
    latest: dict[int, tuple[int, int]] = {}
    readers = []
    for worker in workers:
        assert worker.stdout is not None
        first = worker.stdout.readline()
        if not first.startswith("ready"):
            for other in workers:
                other.kill()
            sys.exit(f"worker {worker.pid} did not start: {first.strip()}")
        reader = threading.Thread(target=follow, args=(worker, latest), daemon=True)
        reader.start()
        readers.append(reader)
    print(f"ready pid={os.getpid()} workers={','.join(str(worker.pid) for worker in workers)}", flush=True)
    codes = [worker.wait() for worker in workers]
    for reader in readers:
        reader.join(timeout=10)
    print_sum(latest)
    return max(abs(code) for code in codes)


def tell_all(workers: "list[subprocess.Popen[str]]", number: signal.Signals) -> None:
    for worker in workers:
        worker.send_signal(number)


def follow(worker: "subprocess.Popen[str]", latest: dict[int, tuple[int, int]]) -> None:
    """Prints the output of a worker and adds its counts to the sum."""
    assert worker.stdout is not None
    for line in worker.stdout:
        words = line.split()
        if words[:1] == ["served"]:
            latest[worker.pid] = int(words[1]), int(words[3])
            print_sum(latest)
        else:
            print(f"worker {worker.pid}: {line}", end="", flush=True)


def print_sum(latest: dict[int, tuple[int, int]]) -> None:
    counts = list(latest.values())
    print(f"served {sum(s for s, _ in counts)} failed {sum(f for _, f in counts)}", flush=True)


def without_workers(arguments: list[str]) -> list[str]:
    """The command line of one worker: the parent's, without --workers N."""
    out, words = [], iter(arguments)
    for word in words:
        if word == "--workers":
            next(words, None)
        elif not word.startswith("--workers="):
            out.append(word)
    return out


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, linux/prctl.h


# --- the command line ----------------------------------------------------------------------------------------------


def size(text: str) -> int:
    factor = {"K": 1024, "M": MIB, "G": 1024 * MIB}.get(text[-1:].upper())
    return int(float(text[:-1]) * factor) if factor else int(text)


def rate(text: str) -> float | None:
    value = None if text == "max" else float(text)
    if value is not None and value <= 0:
        raise argparse.ArgumentTypeError("a rate is more than 0 requests per second, or max")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--rate", type=rate, default=200.0, metavar="N|max", help="requests per second (default 200), or full speed")
    add("--threads", type=int, default=2, metavar="N", help="worker threads per process (default %(default)s)")
    add("--workers", type=int, default=0, metavar="N", help="serve in N child processes (default: in this process)")
    add("--seconds", type=float, default=0, metavar="S", help="stop after this time (default: until a signal)")
    add(
        "--max-rss",
        type=size,
        default=4096 * MIB,
        metavar="SIZE",
        help="accept no more requests from this RSS on (default 4G)",
    )
    add("--buffer", type=size, default=16384, metavar="SIZE", help="size of one staging buffer (default 16K)")
    add("--weights", type=size, default=64 * MIB, metavar="SIZE", help="memory that stays (default 64M)")
    add(
        "--report-every",
        type=float,
        default=5,
        metavar="S",
        help="interval of the printed counts (default %(default)s)",
    )
    kind = parser.add_mutually_exclusive_group()
    shared, private = mmap.MAP_SHARED, mmap.MAP_PRIVATE
    kind.add_argument("--shared", dest="sharing", action="store_const", const=shared, help="shared buffers (default)")
    kind.add_argument("--private", dest="sharing", action="store_const", const=private, help="private buffers")
    add("--no-ucx", action="store_true", help="the same service without UCX")
    parser.set_defaults(sharing=shared)
    options = parser.parse_args()
    return supervise(options) if options.workers else serve(options)


if __name__ == "__main__":
    sys.exit(main())
