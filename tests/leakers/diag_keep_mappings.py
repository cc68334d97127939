"""A small service that keeps an exact number of anonymous bytes. Each request maps --size bytes, touches them all and
keeps them, in a list (for ever) or in an LRU that is full only after --limit of them.

usage: diag_keep_mappings.py --kind private|shared --hold list|lru|nothing [--size N] [--rate N] [--limit N]
"""

import argparse
import mmap
import threading
import time
from collections import OrderedDict

kept: list[mmap.mmap] = []
recent: "OrderedDict[int, mmap.mmap]" = OrderedDict()


def map_buffer(size: int, kind: str) -> mmap.mmap:
    flags = mmap.MAP_ANONYMOUS | (mmap.MAP_PRIVATE if kind == "private" else mmap.MAP_SHARED)
    buffer = mmap.mmap(-1, size, flags=flags)  # LINE map_buffer
    for offset in range(0, size, mmap.PAGESIZE):
        buffer[offset] = 1
    return buffer


def keep_result(number: int, size: int, kind: str) -> None:
    kept.append(map_buffer(size, kind))  # LINE keep_result


def cache_result(number: int, size: int, kind: str, limit: int) -> None:
    recent[number] = map_buffer(size, kind)  # LINE cache_result
    if len(recent) > limit:
        recent.popitem(last=False)[1].close()


def handle_request(number: int, options: argparse.Namespace) -> None:
    if options.hold == "list":
        keep_result(number, options.size, options.kind)
    elif options.hold == "lru":
        cache_result(number, options.size, options.kind, options.limit)
    else:
        map_buffer(options.size, options.kind).close()


def serve(options: argparse.Namespace) -> None:
    number, begin = 0, time.monotonic()
    while True:
        handle_request(number, options)
        number += 1
        time.sleep(max(0.0, begin + number / options.rate - time.monotonic()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=("private", "shared"), default="private")
    parser.add_argument("--hold", choices=("list", "lru", "nothing"), default="list")
    parser.add_argument("--size", type=int, default=256 * 1024)
    parser.add_argument("--rate", type=float, default=8.0)
    parser.add_argument("--limit", type=int, default=100_000)
    options = parser.parse_args()
    thread = threading.Thread(target=serve, args=(options,), daemon=True)
    thread.start()
    print("ready", flush=True)
    thread.join()


main()
