"""Starts one thread per request, ten requests per second. Each waits for an answer that never comes. `--pool N` limits
them to N threads."""

import argparse
import threading
import time

LOCK = threading.Event()


def wait_for_answer() -> None:
    buffer = bytearray(40_000)
    LOCK.wait()
    buffer.clear()


def request() -> None:
    threading.Thread(target=wait_for_answer, daemon=True).start()  # LINE start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pool", type=int, default=1_000_000)
    pool = parser.parse_args().pool
    print("ready", flush=True)
    for number in range(1_000_000):
        if number < pool:
            request()
        time.sleep(0.1)


if __name__ == "__main__":
    main()
