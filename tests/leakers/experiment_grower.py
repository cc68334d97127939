"""A server that grows at GROW MiB/min (120 if unset). With IN_CHILD a worker in a session of its own grows. With
FAIL it ends at once with this exit code. It prints its work as `units N`.
"""

import mmap
import os
import subprocess
import sys
import time

CHUNK = 256 * 1024


def serve(rate_bytes_per_s: float) -> None:
    kept: list[mmap.mmap] = []
    began, done = time.monotonic(), 0
    while True:
        while len(kept) * CHUNK < rate_bytes_per_s * (time.monotonic() - began):
            block = mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            block.write(b"\x01" * CHUNK)
            kept.append(block)
        done += 10
        print(f"units {done}", flush=True)
        time.sleep(0.1)


def main() -> None:
    if "FAIL" in os.environ:
        print("no such model", flush=True)
        sys.exit(int(os.environ["FAIL"]))
    if "IN_CHILD" in os.environ:
        environment = {k: v for k, v in os.environ.items() if k != "IN_CHILD"}
        child = subprocess.Popen([sys.executable, __file__], env=environment, start_new_session=True)
        print(f"child {child.pid}", flush=True)
        if "PID_FILE" in os.environ:
            with open(os.environ["PID_FILE"], "w") as file:
                file.write(str(child.pid))
        child.wait()
    serve(float(os.environ.get("GROW", "120")) * 1024 * 1024 / 60)


if __name__ == "__main__":
    main()
