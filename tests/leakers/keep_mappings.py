"""Keeps memory in one of several ways: keep_mappings.py HOW. Prints "ready", then adds some every 5 ms until it is
killed. HOW: objects (mmap objects in a dict), addresses (addresses of mappings as Python ints), arrays (numpy),
buffers (bytearrays), threads (that wait), small (small objects), forgotten (mappings without a kept address)."""

import ctypes
import mmap
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
SIZE = 16384
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

kept: dict[int, object] = {}
wake = threading.Event()


def map_block() -> int:
    address: int = libc.mmap(None, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, FLAGS, -1, 0)
    ctypes.memset(address, 1, SIZE)
    return address


def take(how: str, number: int) -> None:
    if how == "objects":
        kept[number] = block = mmap.mmap(-1, SIZE, flags=FLAGS)
        block[0] = 1
    elif how == "addresses":
        kept[number] = map_block()
    elif how == "arrays":
        import numpy as np

        kept[number] = np.ones(40_000)
    elif how == "buffers":
        kept[number] = bytearray(300_000)
    elif how == "threads":
        thread = threading.Thread(target=wake.wait, daemon=True)
        thread.start()
        kept[number] = thread
    elif how == "small":
        kept[number] = [object() for _ in range(3000)]
    elif how == "forgotten":
        map_block()


def main() -> None:
    print("ready", flush=True)
    number = 0
    while number < 20_000:
        take(sys.argv[1], number)
        number += 1
        time.sleep(0.005 if sys.argv[1] != "threads" else 0.05)
    wake.wait()


main()
