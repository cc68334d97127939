"""Prints the line tables of code of its standard library as JSON, with the lines that the interpreter finds in them."""

import argparse
import asyncio.base_events
import dis
import inspect
import json
import typing


def codes_of(code):
    yield code
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from codes_of(constant)


def lines_of(code):
    """(start, end, line) of each run of bytecode."""
    if hasattr(code, "co_lines"):  # 3.10 and later
        return [(start, end, line) for start, end, line in code.co_lines()]
    starts = list(dis.findlinestarts(code))
    ends = [start for start, _ in starts[1:]] + [len(code.co_code)]
    return [(start, end, line) for (start, line), end in zip(starts, ends)]  # noqa: B905  (3.8)


for module in (argparse, asyncio.base_events, dis, inspect, typing):
    with open(module.__file__, encoding="utf-8") as stream:
        program = compile(stream.read(), module.__file__, "exec")
    for each in codes_of(program):
        table = each.co_linetable if hasattr(each, "co_linetable") else each.co_lnotab
        print(json.dumps({"first": each.co_firstlineno, "table": table.hex(), "lines": lines_of(each)}))
