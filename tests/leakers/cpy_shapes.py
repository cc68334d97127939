"""Threads that map memory on request, each with another shape of Python stack, and print their stacks.

There is one thread per shape, and each maps blocks of its own size. When a thread starts, it prints a line "stack " +
JSON: tid, shape, size, and the stack, leaf first, from sys._getframe at the line of the mapping.
On stdin: "start N" starts the threads of every Nth shape, "map N" makes each thread map N blocks, one after another,
and prints "mapped" at the end. Works on 3.8 and later.
"""

import asyncio
import concurrent.futures
import contextlib
import ctypes
import functools
import importlib
import json
import mmap
import os
import re
import sys
import tempfile
import threading
import weakref
import zipfile

FOLDER = os.path.dirname(os.path.abspath(__file__))
KEPT = []
PAGE = 4096
ANONYMOUS = (0, 3, 0x22, -1, 0)  # address, PROT_READ|WRITE, MAP_PRIVATE|ANONYMOUS, file, offset: around the length


class Job:
    """One thread's task: how it maps, and the pipes for requests and answers. Pipes: a sub-interpreter has
    no other way."""

    def __init__(self, shape, size, call, arguments):
        self.shape, self.size, self.call, self.arguments = shape, size, call, arguments
        self.gate_out, self.gate_in = os.pipe()
        self.done_out, self.done_in = os.pipe()

    def map(self):
        os.write(self.gate_in, b"m")
        os.read(self.done_out, 1)


def leaf(job):
    report(job, sys._getframe())
    # fmt: off
    while os.read(job.gate_out, 1): KEPT.append(job.call(*job.arguments)); os.write(job.done_in, b"d")  # noqa: E701, E702
    # fmt: on


LEAF_LINE = leaf.__code__.co_firstlineno + 3


def report(job, frame):
    frames = []
    while frame is not None:
        code = frame.f_code
        line = LEAF_LINE if code is leaf.__code__ else frame.f_lineno
        frames.append((getattr(code, "co_qualname", code.co_name), code.co_filename, line))
        frame = frame.f_back
    say(
        "stack "
        + json.dumps({"shape": job.shape, "size": job.size, "tid": threading.get_native_id(), "frames": frames})
    )
    os.write(job.done_in, b"r")


def say(line):
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


def plain(job):
    leaf(job)


def second(job, after=0):
    leaf(job)
    return after


def several_lines(job):
    return dict(  # noqa: C408
        first=1,
        second=[
            second(
                job,
                after=2,
            )
        ],
    )


def in_a_list(job):
    value = [
        1,
        plain(job),
        3,
    ]
    return value  # noqa: RET504


def conditional(job):
    return (
        None
        if job is None
        else plain(
            job
        )
    )  # fmt: skip


def chained(job):
    class Chain:
        def step(self):
            return self

        def last(self, job):
            plain(job)

    (
        Chain()
        .step()
        .step()
        .last(job)
    )  # fmt: skip


def generator(job):
    yield 1
    plain(job)
    yield 2


def delegating(job):
    yield from generator(job)


def generators(job):
    for _ in delegating(job):
        pass


def sent_into(job):
    def receiving():
        got = yield
        plain(got)
        yield

    running = receiving()
    next(running)
    running.send(job)


def thrown_into(job):
    def catching():
        try:
            yield
        except KeyError:
            plain(job)
        yield

    running = catching()
    next(running)
    running.throw(KeyError())


def generator_expression(job):
    return sum(
        plain(j) or 0
        for j in [job]
    )  # fmt: skip


def list_comprehension(job):
    return [
        plain(x)
        for y in [1]
        for x in [job]
        if x
    ]  # fmt: skip


def dict_comprehension(job):
    return {y: {x: plain(x) for x in [job]} for y in [0]}


def set_comprehension_in_a_lambda(job):
    return (lambda jobs: {plain(j) for j in jobs})([job])


async def coroutine(job):
    await asyncio.sleep(0)
    plain(job)


async def numbers(job):
    yield 1
    await coroutine(job)


async def through_everything(job):
    async with Asynchronous():
        async for _ in numbers(job):
            pass


class Asynchronous:
    async def __aenter__(self):
        await asyncio.sleep(0)

    async def __aexit__(self, *_):
        pass


def coroutines(job):
    asyncio.run(through_everything(job))


async def gathering(job):
    await asyncio.gather(coroutine(job), asyncio.sleep(0))


def tasks(job):
    asyncio.run(gathering(job))


@contextlib.contextmanager
def managed(job):
    plain(job)
    yield


def context_manager(job):
    with managed(
        job,
    ):
        pass


class Exits:
    def __init__(self, job):
        self.job = job

    def __enter__(self):
        return self

    def __exit__(self, *_):
        plain(self.job)


def leaving_with(job):
    with Exits(job):
        hash(job)
    return job


def leaving_with_an_error(job):
    with contextlib.suppress(KeyError), Exits(job):
        raise KeyError


def handler(job):
    try:
        try:
            raise KeyError
        except KeyError:
            raise ValueError from None
    except ValueError:
        plain(job)


def finally_block(job):
    try:
        return job
    finally:
        plain(job)


def recursion(job, depth=60):
    return recursion(job, depth - 1) if depth else plain(job)


def too_deep(job, depth=300):
    return too_deep(job, depth - 1) if depth else plain(job)


def sort_key(job):
    sorted([job], key=lambda j: plain(j) or 0)


def reduced(job):
    functools.reduce(lambda _, j: plain(j), [None, job])


def mapped(job):
    list(filter(None, map(functools.partial(plain), [job])))


def substituted(job):
    re.sub("x", lambda _: plain(job) or "", "x")


@functools.lru_cache(maxsize=None)  # noqa: UP033  (3.8)
def remembered(job):
    plain(job)


def ctypes_callback(job):
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(lambda _a, _b: plain(job) or 0)
    ctypes.CDLL(None).qsort((ctypes.c_int * 2)(2, 1), 2, 4, compare)


class Meta(type):
    def __call__(cls, *arguments):
        return super().__call__(*arguments)

    def __new__(meta, name, bases, space, job=None):
        if job:
            plain(job)
        return super().__new__(meta, name, bases, space)

    def __init__(cls, name, bases, space, job=None):
        super().__init__(name, bases, space)


class Made(metaclass=Meta):
    def __init__(self, job):
        self.run(job)

    def run(self, job):
        plain(job)

    @property
    def größe_日本(self):  # noqa: N802  (a name that is no Latin-1)
        return plain(self.job)

    def __getattr__(self, name):
        return plain(name[1])

    def __call__(self, job):
        plain(job)

    def __eq__(self, job):
        plain(job)
        return True

    __hash__ = None


def metaclass(job):
    Made(job)


def class_made(job):
    class _Inner(metaclass=Meta, job=job):
        pass


def class_body(job):
    class _Inner:
        attribute = plain(job)


def property_with_a_wide_name(job):
    made = object.__new__(Made)
    made.job = job
    return made.größe_日本


def called_object(job):
    object.__new__(Made)(job)


def compared(job):
    return object.__new__(Made) == job


class Hot:
    """Made so often that its construction is specialized (3.12 and later)."""

    def __init__(self, job):
        if job:
            plain(job)


def hot_construction(job):
    for order in [None] * 5000 + [job]:
        Hot(order)


def finalized(job):
    class Dying:
        def __del__(self):
            plain(job)

    Dying()


def weak_reference(job):
    class Dying:
        pass

    dying = Dying()
    reference = weakref.ref(dying, lambda _: plain(job))
    del dying
    return reference


def executed(job):
    exec("\n\n\ndef nested():\n  plain(job)\n\n\nnested()", {"job": job, "plain": plain})  # a file named <string>


def evaluated(job):
    eval(compile("\n\n(1,\n plain(job))", "some/file.py", "eval"), {"job": job, "plain": plain})


def decorated(job):
    @functools.wraps(plain)
    def wrapper(*arguments, **words):
        return plain(*arguments, **words)

    wrapper(job)


def pool(job):
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        executor.submit(plain, job).result()


def profiled(job):
    sys.setprofile(lambda *_: None)
    plain(job)


def traced(job):
    sys.settrace(lambda *_: None)
    plain(job)


def imported(job):
    import_out_of(job, "{folder}")


def zip_imported(job):
    import_out_of(job, "{folder}/modules.zip")


def import_out_of(job, where):
    """A module whose body maps: the frames of the frozen importlib are on the stack, or those of zipimport."""
    with tempfile.TemporaryDirectory() as folder:
        where, name = where.format(folder=folder), f"module_{id(job)}"
        text = "import __main__\n\n__main__.plain(__main__.IMPORTING[__name__])\n"
        if where.endswith(".zip"):
            with zipfile.ZipFile(where, "w") as archive:
                archive.writestr(name + ".py", text)
        else:
            with open(os.path.join(folder, name + ".py"), "w") as stream:
                stream.write(text)
        IMPORTING[name] = job
        sys.path.insert(0, where)
        importlib.invalidate_caches()
        importlib.import_module(name)


IMPORTING = {}


def gil_held(job):
    job.call, job.arguments = foreign(ctypes.PyDLL(None), job.size)
    plain(job)


def gil_released(job):
    job.call, job.arguments = foreign(ctypes.CDLL(None), job.size)
    plain(job)


def foreign(library, size):
    call = library.mmap
    call.restype = ctypes.c_void_p
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    return call, (ANONYMOUS[0], size, *ANONYMOUS[1:])


class Operand:
    """Its operators map: each is called out of another part of the interpreter's loop."""

    def __init__(self, job):
        self.job = job

    def act(self, *_, **_words):
        plain(self.job)
        return self

    __add__ = __imatmul__ = __neg__ = __getitem__ = __setitem__ = __delitem__ = __call__ = __enter__ = act
    __get__ = __set__ = __delete__ = __missing__ = act

    def __contains__(self, _):
        plain(self.job)
        return True

    def __bool__(self):
        plain(self.job)
        return True

    def __format__(self, _):
        plain(self.job)
        return ""

    def __iter__(self):
        plain(self.job)
        return iter((1, 2))

    def keys(self):
        plain(self.job)
        return ()

    def __exit__(self, *_):
        return False


def operators(job):
    """One thread through many instructions would be one shape each: so each is a statement compiled by itself."""
    exec(OPERATIONS[job.shape], {"it": Operand(job), "Holder": holder(job), "Error": failing(job)})


def holder(job):
    return type("Holder", (), {"place": Operand(job)})


def failing(job):
    return type("Error", (Exception,), {"__init__": lambda self: plain(job)})


OPERATIONS = {
    "added": "it + 1",
    "multiplied": "it @= 1",
    "negated": "-it",
    "item": "it[1]",
    "item_set": "it[1] = 2",
    "item_deleted": "del it[1]",
    "slice_set": "it[1:2] = 2",
    "attribute": "Holder().place",
    "attribute_set": "Holder().place = 1",
    "attribute_deleted": "del Holder().place",
    "called": "it()",
    "called_with_words": "it(1, *(2,), **{'a': 1})",
    "contained": "3 in it",
    "judged": "not it",
    "branched": "1 if it else 2",
    "formatted": "f'{it!s:{1}}' if 0 else f'{it:1}'",
    "unpacked": "a, b = it",
    "unpacked_more": "a, *b = it",
    "listed": "[*it, 1]",
    "counted": "{*it}",
    "merged": "dict(**it)",
    "merged_more": "{**it}",
    "entered": "with it: pass",
    "iterated": "for _ in it: break",
    "raised": "try:\n  raise Error\nexcept Error: pass",
    "raised_from": "try:\n  raise KeyError from Error\nexcept KeyError: pass",
    "asserted": "assert it",
}

SHAPES = [
    plain, several_lines, in_a_list, conditional, chained, generators, sent_into, thrown_into, generator_expression,
    list_comprehension, dict_comprehension, set_comprehension_in_a_lambda, coroutines, tasks, context_manager,
    leaving_with, leaving_with_an_error, handler, finally_block, recursion, sort_key, reduced, mapped, substituted,
    remembered, ctypes_callback, metaclass, class_made, class_body, property_with_a_wide_name, called_object, compared,
    hot_construction, finalized, weak_reference, executed, evaluated, decorated, pool, profiled, traced, imported,
    zip_imported, gil_held, gil_released, too_deep,
]  # fmt: skip
FIRST_PAGES = 1009  # of the first shape; each has its own size


def start(every):
    """One thread a shape, one after another: "stack" lines do not mix."""
    jobs = []
    named = [*((shape.__name__, shape) for shape in SHAPES), *((name, operators) for name in OPERATIONS)]
    for number, (name, shape) in list(enumerate(named))[::every]:
        size = (FIRST_PAGES + 2 * number) * PAGE
        jobs.append(Job(name, size, mmap.mmap, (-1, size)))
        threading.Thread(target=shape, args=(jobs[-1],), daemon=True).start()
        os.read(jobs[-1].done_out, 1)
    return jobs


def main():
    jobs = []
    say("ready")
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        if word == "start":
            jobs += start(int(number))
            say("started")
        elif word == "map":
            for _ in range(int(number)):
                for job in jobs:
                    job.map()
            say("mapped")


if __name__ == "__main__":
    main()
