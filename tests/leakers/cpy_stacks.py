"""Threads in known Python functions that map and unmap memory there, a hundred times a second.

Prints one JSON line per thread: its tid, its shape and its stack, leaf first, from the interpreter
(sys._getframe). On stdin: "late" starts another thread, "sub" one in a sub-interpreter, "deeper N" one that is N frames
deep, "idle N" starts N threads that wait. Works on 3.8 and later.
"""

import asyncio
import functools
import json
import mmap
import sys
import threading
import time


def leaf(shape):
    report(shape, sys._getframe())
    # fmt: off
    while True: mmap.mmap(-1, 4096).close(); time.sleep(0.01)  # noqa: E701, E702 - one line, whatever is sampled
    # fmt: on


LEAF_LINE = leaf.__code__.co_firstlineno + 3


def report(shape, frame):
    frames = []
    while frame is not None:
        code = frame.f_code
        line = LEAF_LINE if code is leaf.__code__ else frame.f_lineno
        frames.append((getattr(code, "co_qualname", code.co_name), code.co_filename, line))
        frame = frame.f_back
    line = json.dumps({"shape": shape, "tid": threading.get_native_id(), "frames": frames})
    sys.stdout.write("stack " + line + "\n")
    sys.stdout.flush()


def f8(shape):
    leaf(shape)


def f7(shape):
    f8(shape)


def f6(shape):
    f7(shape)


def f5(shape):
    f6(shape)


def f4(shape):
    f5(shape)


def f3(shape):
    f4(shape)


def f2(shape):
    f3(shape)


def f1(shape):
    f2(shape)


def generator(shape):
    yield 1
    f7(shape)


def delegating(shape):
    yield from generator(shape)


def through_generators(shape):
    for _ in delegating(shape):
        pass


async def inner(shape):
    await asyncio.sleep(0)
    f7(shape)


async def outer(shape):
    await inner(shape)


def through_asyncio(shape):
    asyncio.run(outer(shape))


def through_sort(shape):
    sorted([3, 1, 2], key=lambda _: f6(shape))


class Meta(type):
    def __call__(cls, *arguments):
        return super().__call__(*arguments)


class Made(metaclass=Meta):
    def __init__(self, shape):
        self.run(shape)

    def run(self, shape):
        list(map(functools.partial(f7), [shape]))

    @property
    def größe_日本(self):  # noqa: N802  (a name that is no Latin-1)
        return f7("unicode")


def through_metaclass(shape):
    Made(shape)


def through_property(shape):
    Made.größe_日本.__get__(object.__new__(Made))


def through_exec(shape):
    exec("def nested():\n  f6(shape)\n\n\nnested()", {"shape": shape, "f6": f6})  # a file named <string>


def through_comprehension(shape):
    [x for y in [1] for x in [f7(shape)]]


def deep(shape, depth):
    if depth:
        deep(shape, depth - 1)
    else:
        leaf(shape)


SHAPES = {
    "plain": f1,
    "generators": through_generators,
    "asyncio": through_asyncio,
    "sort": through_sort,
    "metaclass": through_metaclass,
    "property": through_property,
    "exec": through_exec,
    "comprehension": through_comprehension,
    "deep": functools.partial(deep, depth=60),
}
SUB = """
import sys
sys.path.insert(0, {folder!r})
sys.argv = ["sub"]
import cpy_stacks
cpy_stacks.f1("sub")
"""


def in_sub_interpreter():
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    import os

    number = interpreters.create()
    interpreters.run_string(number, SUB.format(folder=os.path.dirname(os.path.abspath(__file__))))


def start(function, *arguments):
    threading.Thread(target=function, args=arguments, daemon=True).start()


def main():
    for shape, function in SHAPES.items():
        start(function, shape)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        if word == "late":
            start(f1, "late")
        elif word == "sub":
            start(in_sub_interpreter)
        elif word == "deeper":
            start(deep, "deeper", int(number))
        elif word == "idle":
            for _ in range(int(number)):
                start(threading.Event().wait)
            sys.stdout.write("idle\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
