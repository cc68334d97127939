"""Threads with more than one plain Python stack: several interpreters, greenlets, forks. Reads the name of a scene from
stdin. Each scene maps blocks, each with its own size, and prints "map " + JSON per block: size, process, and the
stack, leaf first, from sys._getframe (known for a sub-interpreter). Then it prints "done". For 3.8 and later.
"""

import json
import mmap
import os
import sys
import threading

KEPT = []
SIZES = iter(range(2011 * 4096, 1 << 40, 8192))


def place():
    # fmt: off
    size = next(SIZES); KEPT.append(mmap.mmap(-1, size)); tell(size, sys._getframe())  # noqa: E702 - one line
    # fmt: on


def tell(size, frame, *before):
    frames = list(before)
    while frame is not None:
        code = frame.f_code
        frames.append((getattr(code, "co_qualname", code.co_name), code.co_filename, frame.f_lineno))
        frame = frame.f_back
    say("map " + json.dumps({"size": size, "pid": os.getpid(), "frames": frames}))


def say(line):
    os.write(1, line.encode() + b"\n")


def interpreters():
    try:
        import _interpreters

        return _interpreters
    except ImportError:
        import _xxsubinterpreters

        return _xxsubinterpreters


INSIDE = """
import mmap, sys
def inside(size): kept.append(mmap.mmap(-1, size))
try:
    kept
except NameError:
    kept = []
inside({size})
"""
WITHIN = [("inside", "<string>", 3), ("<module>", "<string>", 8)]


def run_in(number):
    size = next(SIZES)
    # fmt: off
    interpreters().run_string(number, INSIDE.format(size=size)); tell(size, sys._getframe(), *WITHIN)  # noqa: E702
    # fmt: on


def scene_interpreters():
    """One thread makes six and goes through them; and is itself again."""
    numbers = [interpreters().create() for _ in range(6)]
    for number in (*numbers, *reversed(numbers)):
        run_in(number)
        place()
    OTHERS.extend(numbers)


OTHERS = []


def scene_other_thread():
    """A thread in an interpreter that another one made."""
    scene_interpreters()
    in_a_thread(lambda: [run_in(number) for number in OTHERS])


def in_a_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def scene_fork():
    in_a_thread(forked)
    forked()


def forked():
    pid = os.fork()
    if pid == 0:
        for _ in range(3):
            place()
        in_a_thread(place)
        say("child " + str(os.getpid()))
        os.read(0, 1)
        os._exit(0)


def scene_greenlets():
    from greenlet import greenlet

    def first():
        place()
        second_one.switch()
        place()
        nested(3)
        main.switch()
        place()

    def nested(depth):
        if depth:
            nested(depth - 1)
            return
        second_one.switch()
        place()

    def second():
        place()
        first_one.switch()
        place()
        first_one.switch()
        place()

    def deeper(depth, function):
        return deeper(depth - 1, function) if depth else function()

    main = greenlet.getcurrent()
    first_one, second_one = greenlet(first), greenlet(second)
    deeper(2, first_one.switch)
    place()
    deeper(5, first_one.switch)
    place()
    second_one.switch()
    place()


def main():
    say("ready")
    for line in sys.stdin:
        globals()["scene_" + line.strip()]()
        say("done")


if __name__ == "__main__":
    main()
