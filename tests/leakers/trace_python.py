"""Maps in functions with a known name and line. Prints "ready"; then executes one line at a time and prints "done":

private N BYTES | shared N BYTES    N mappings, touched and kept
churn N BYTES                       N mappings, closed at once
thread N BYTES                      the same as private, in a new thread that stays
memfd N BYTES | disk N BYTES        N mappings, touched and kept, each of a file in memory or in the working folder
"""

import mmap
import os
import queue
import sys
import tempfile
import threading

KEPT = []


def keep_private(size):
    KEPT.append(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))  # LINE private
    touch(KEPT[-1])


def keep_shared(size):
    KEPT.append(mmap.mmap(-1, size))  # LINE shared
    touch(KEPT[-1])


def keep_memfd(size):
    keep_file(os.memfd_create("kept"), size)


def keep_disk(size):
    with tempfile.NamedTemporaryFile(dir=".") as file:
        keep_file(os.dup(file.fileno()), size)


def keep_file(descriptor, size):
    os.truncate(descriptor, size)
    KEPT.append(mmap.mmap(descriptor, size))  # LINE file
    os.close(descriptor)
    touch(KEPT[-1])


def touch(mapped):
    for offset in range(0, len(mapped), 4096):
        mapped[offset] = 1


class Churner:
    def once(self, size):
        mmap.mmap(-1, size).close()


class Worker:
    def __init__(self):
        self.jobs, self.answers = queue.Queue(), queue.Queue()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            self.answers.put(keep_private(self.jobs.get()))

    def keep(self, size):
        self.jobs.put(size)
        self.answers.get()


def main():
    worker = Worker()
    print("ready", flush=True)
    for line in sys.stdin:
        what, count, size = line.split()[0], int(line.split()[1]), int(line.split()[2])
        act = {"private": keep_private, "shared": keep_shared, "churn": Churner().once, "thread": worker.keep,
               "memfd": keep_memfd, "disk": keep_disk}[what]  # fmt: skip
        for _ in range(count):
            act(size)
        print("done", flush=True)


main()
