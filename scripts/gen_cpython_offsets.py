#!/usr/bin/env python3
"""Generates memforensics/runtimes/cpython/offsets.json: the offsets of fields in CPython's structures, by version.

    scripts/gen_cpython_offsets.py PREFIX...            writes the table from the headers under these prefixes
    scripts/gen_cpython_offsets.py --check PREFIX...    compares, exit code 1 if the table differs

A prefix is that of an installed CPython with include/python3.X/internal. For each, a C program is compiled with its
headers and run; nothing is parsed. Other versions keep their entry. The table is for default builds: free-threaded and
Py_TRACE_REFS builds have another layout.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TABLE = Path(__file__).parent.parent / "memforensics" / "runtimes" / "cpython" / "offsets.json"

# Field of Offsets -> C expression. Later dictionaries override earlier ones.
COMMON = {
    "interpreters_head": "offsetof(_PyRuntimeState, interpreters.head)",
    "interpreter_next": "offsetof(PyInterpreterState, next)",
    "interpreter_id": "offsetof(PyInterpreterState, id)",
    "thread_next": "offsetof(PyThreadState, next)",
    "thread_ident": "offsetof(PyThreadState, thread_id)",
    "code_filename": "offsetof(PyCodeObject, co_filename)",
    "code_firstlineno": "offsetof(PyCodeObject, co_firstlineno)",
    "code_linetable": "offsetof(PyCodeObject, co_linetable)",
    "object_type": "offsetof(PyObject, ob_type)",
    "bytes_size": "offsetof(PyVarObject, ob_size)",
    "bytes_data": "offsetof(PyBytesObject, ob_sval)",
    "unicode_length": "offsetof(PyASCIIObject, length)",
    "unicode_state": "offsetof(PyASCIIObject, state)",
    "unicode_kind_shift": "kind_shift()",
    "ascii_data": "sizeof(PyASCIIObject)",
    "compact_data": "sizeof(PyCompactUnicodeObject)",
    "runtime_size": "sizeof(_PyRuntimeState)",
}
OBJECT_FRAMES = {  # 3.8 to 3.10: a chain of PyFrameObject
    "threads_head": "offsetof(PyInterpreterState, tstate_head)",
    "thread_frame": "offsetof(PyThreadState, frame)",
    "frame_previous": "offsetof(PyFrameObject, f_back)",
    "frame_code": "offsetof(PyFrameObject, f_code)",
    "frame_instruction": "offsetof(PyFrameObject, f_lasti)",
    "code_qualname": "offsetof(PyCodeObject, co_name)",
}
INTERPRETER_FRAMES = {  # 3.11 and later: _PyInterpreterFrame
    "threads_head": "offsetof(PyInterpreterState, threads.head)",
    "native_thread_id": "offsetof(PyThreadState, native_thread_id)",
    "frame_previous": "offsetof(_PyInterpreterFrame, previous)",
    "code_qualname": "offsetof(PyCodeObject, co_qualname)",
    "code_start": "offsetof(PyCodeObject, co_code_adaptive)",
}
CFRAME = {
    "thread_frame": "offsetof(PyThreadState, cframe)",
    "cframe_frame": "offsetof(_PyCFrame, current_frame)",
    "frame_code": "offsetof(_PyInterpreterFrame, f_code)",
    "frame_instruction": "offsetof(_PyInterpreterFrame, prev_instr)",
}
FIELDS: dict[str, dict[str, str]] = {
    "3.8": COMMON | OBJECT_FRAMES | {"code_linetable": "offsetof(PyCodeObject, co_lnotab)"},
    "3.9": COMMON | OBJECT_FRAMES | {"code_linetable": "offsetof(PyCodeObject, co_lnotab)"},
    "3.10": COMMON | OBJECT_FRAMES,
    "3.11": COMMON | INTERPRETER_FRAMES | CFRAME | {"frame_mark": "offsetof(_PyInterpreterFrame, is_entry)"},
    "3.12": COMMON | INTERPRETER_FRAMES | CFRAME | {"frame_mark": "offsetof(_PyInterpreterFrame, owner)"},
    "3.13": COMMON
    | INTERPRETER_FRAMES
    | {
        "thread_frame": "offsetof(PyThreadState, current_frame)",
        "frame_code": "offsetof(_PyInterpreterFrame, f_executable)",
        "frame_instruction": "offsetof(_PyInterpreterFrame, instr_ptr)",
        "frame_mark": "offsetof(_PyInterpreterFrame, owner)",
    },
}
DEBUG = {  # 3.13: the same in _Py_DebugOffsets, at the start of _PyRuntime
    "interpreters_head": "runtime_state.interpreters_head",
    "interpreter_next": "interpreter_state.next",
    "interpreter_id": "interpreter_state.id",
    "threads_head": "interpreter_state.threads_head",
    "thread_next": "thread_state.next",
    "thread_ident": "thread_state.thread_id",
    "native_thread_id": "thread_state.native_thread_id",
    "thread_frame": "thread_state.current_frame",
    "frame_previous": "interpreter_frame.previous",
    "frame_code": "interpreter_frame.executable",
    "frame_instruction": "interpreter_frame.instr_ptr",
    "frame_mark": "interpreter_frame.owner",
    "code_filename": "code_object.filename",
    "code_qualname": "code_object.qualname",
    "code_linetable": "code_object.linetable",
    "code_firstlineno": "code_object.firstlineno",
    "code_start": "code_object.co_code_adaptive",
    "object_type": "pyobject.ob_type",
    "unicode_length": "unicode_object.length",
    "unicode_state": "unicode_object.state",
    "ascii_data": "unicode_object.asciiobject_size",
    "version": "version",
    "free_threaded": "free_threaded",
}
HEADERS = {
    "3.8": ["frameobject.h", "internal/pycore_pystate.h"],
    "3.9": ["frameobject.h", "internal/pycore_interp.h", "internal/pycore_runtime.h"],
    "3.10": ["frameobject.h", "internal/pycore_interp.h", "internal/pycore_runtime.h"],
}
LATER = ["internal/pycore_frame.h", "internal/pycore_interp.h", "internal/pycore_runtime.h", "internal/pycore_code.h"]
PROGRAM = """
#define Py_BUILD_CORE 1
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include "Python.h"
{includes}
static unsigned kind_shift(void) {{
    PyASCIIObject string;
    unsigned state;
    memset(&string, 0, sizeof string);
    string.state.kind = 1;
    memcpy(&state, &string.state, sizeof state);
    return __builtin_ctz(state);
}}
int main(void) {{
    (void)kind_shift;
{prints}
    return 0;
}}
"""


def version_of(prefix: Path) -> tuple[str, Path]:
    """Minor version and include folder of the CPython under a prefix. SystemExit if there is none."""
    for folder in sorted(prefix.glob("include/python3.*")):
        found = re.fullmatch(r"python(3\.\d+)", folder.name)
        if found and found[1] in FIELDS:
            return found[1], folder
    raise SystemExit(f"{prefix}: no headers of CPython {min(FIELDS)} to 3.13 (include/python3.X)")


def measured(prefix: Path) -> tuple[str, dict[str, object]]:
    """Version, and the offsets that a C compiler finds in its headers."""
    version, include = version_of(prefix)
    wanted = dict(FIELDS[version])
    if version == "3.13":
        wanted |= {f"debug.{name}": f"offsetof(struct _Py_DebugOffsets, {path})" for name, path in DEBUG.items()}
    headers = HEADERS.get(version, LATER)
    program = PROGRAM.format(
        includes="\n".join(f'#include "{header}"' for header in headers),
        prints="\n".join(f'    printf("{name} %zu\\n", (size_t)({c}));' for name, c in wanted.items()),
    )
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "offsets.c"), Path(folder, "offsets")
        source.write_text(program)
        # No libpython: the program needs only sizes and offsets. -O1 drops the unused inline functions.
        command = ["gcc", "-O1", "-w", "-I", include, "-I", include / "internal", "-o", binary, source]
        subprocess.run([*map(str, command), "-Wl,--unresolved-symbols=ignore-all"], check=True)
        output = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
    plain: dict[str, object] = {}
    debug: dict[str, int] = {}
    for line in output.splitlines():
        name, value = line.split()
        if name.startswith("debug."):
            debug[name[6:]] = int(value)
        else:
            plain[name] = int(value)
    if debug:
        plain["debug_offsets"] = debug
    return version, plain


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefixes", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with the table instead of writing it")
    options = parser.parse_args(arguments)
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    fresh = dict(table) | dict(measured(prefix) for prefix in options.prefixes)
    if options.check:
        for version in fresh:
            if fresh[version] != table.get(version):
                print(f"{version}: the headers differ from {TABLE.name}", file=sys.stderr)
        return int(fresh != table)
    ordered = {version: fresh[version] for version in FIELDS if version in fresh}
    TABLE.write_text(json.dumps(ordered, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
