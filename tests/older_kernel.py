"""Runs a program as on an older kernel: `python older_kernel.py [--no-sys-admin] COMMAND ...`.

A seccomp filter makes PAGEMAP_SCAN and PROCMAP_QUERY fail with ENOTTY, as on a kernel without these ioctls. With
--no-sys-admin the program does not see page frame numbers either.
"""

import ctypes
import os
import struct
import sys

PAGEMAP_SCAN, PROCMAP_QUERY = 0xC0606610, 0xC0686611
_PR_CAPBSET_DROP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 24, 22, 38, 2
_CAP_SYS_ADMIN = 21
_IOCTL = {"x86_64": 16, "aarch64": 29}[os.uname().machine]
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _ENOTTY = 0x7FFF0000, 0x00050000 | 25


def without(*ioctls: int) -> None:
    """Installs the filter for this process and what it executes."""
    code = [(_LOAD, 0, 0, 0), (_EQUAL, 0, len(ioctls) + 1, _IOCTL), (_LOAD, 0, 0, 24)]  # nr, low half of args[1]
    code += [(_EQUAL, len(ioctls) - place, 0, number) for place, number in enumerate(ioctls)]
    code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ENOTTY)]
    text = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *one) for one in code))
    program = struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(text))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, _FILTER, program)


def _prctl(option: int, *words: "int | bytes") -> None:
    library = ctypes.CDLL(None, use_errno=True)
    padded = [*words, 0, 0, 0][:4]
    values = [ctypes.c_char_p(word) if isinstance(word, bytes) else ctypes.c_ulong(word) for word in padded]
    if library.prctl(ctypes.c_int(option), *values):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


if __name__ == "__main__":
    command = sys.argv[1:]
    if command[0] == "--no-sys-admin":
        command = command[1:]
        _prctl(_PR_CAPBSET_DROP, _CAP_SYS_ADMIN)
    without(PAGEMAP_SCAN, PROCMAP_QUERY)
    os.execv(command[0], command)
