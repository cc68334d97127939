"""Maps 1299709 bytes in a chain of Python functions, a hundred times per second."""

import mmap
import time

SIZE = 1299709


def innermost() -> None:
    mmap.mmap(-1, SIZE).close()


def through_a_callback(_: int) -> int:
    innermost()
    return 0


def outermost() -> None:
    sorted([1], key=through_a_callback)


def main() -> None:
    print("ready", flush=True)
    while True:
        outermost()
        time.sleep(0.01)


main()
