"""The expression of `stacks --if EXPR`, translated to gdb's language. Pure.

It has numbers, argument names, registers, comparisons and arithmetic. Nothing in it can call a function of the target
or assign a value.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from memforensics.errors import UsageError

SYSCALL_REGISTERS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")  # System V ABI for x86-64, appendix A.2.1
CALL_REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")  # section 3.2.3

# Argument names as in the manual pages. A trailing * marks a signed int; others are unsigned 64-bit names.
_SIGNATURES: Mapping[str, tuple[str, ...]] = {
    "mmap": ("addr", "length", "prot*", "flags*", "fd*", "offset"),
    "mmap64": ("addr", "length", "prot*", "flags*", "fd*", "offset"),
    "munmap": ("addr", "length"),
    "mremap": ("old_address", "old_size", "new_size", "flags*", "new_address"),
    "brk": ("addr",),
    "sbrk": ("increment",),
    "madvise": ("addr", "length", "advice*"),
    "mprotect": ("addr", "length", "prot*"),
    "mlock": ("addr", "length"),
    "shmat": ("shmid*", "shmaddr", "shmflg*"),
    "shmdt": ("shmaddr",),
    "shmget": ("key*", "size", "shmflg*"),
    "memfd_create": ("name", "flags*"),
    "ftruncate": ("fd*", "length"),
    "malloc": ("size",),
    "calloc": ("nmemb", "size"),
    "realloc": ("ptr", "size"),
    "free": ("ptr",),
    "memalign": ("alignment", "size"),
    "aligned_alloc": ("alignment", "size"),
    "posix_memalign": ("memptr", "alignment", "size"),
}
_GENERIC = tuple(f"arg{n}" for n in range(6))
_TOKEN = re.compile(
    r"\s*(?:(?P<number>0[xX][0-9a-fA-F]+|\d+)|(?P<register>\$[a-z][a-z0-9]*)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<operator>&&|\|\||==|!=|<=|>=|<<|>>|[-+*/%&|^~!<>()]))"
)
_PREFIXES = frozenset("-+!~(")
_GENERAL_REGISTERS = frozenset(["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip", "orig_rax"]) | {
    f"r{n}" for n in range(8, 16)
}


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of the call: its name, its register, and whether it is a signed int."""

    name: str
    register: str
    is_int: bool = False

    def value(self, word: int) -> int:
        """The argument's value in the 64 bits of its register."""
        if not self.is_int:
            return word
        low = word & 0xFFFFFFFF
        return low - (1 << 32) if low >> 31 else low

    @property
    def expression(self) -> str:
        return f"((int)${self.register})" if self.is_int else f"((unsigned long)${self.register})"


def arguments_of(function: str, *, syscall: bool) -> tuple[Argument, ...]:
    """The arguments of a call; arg0 to arg5 if its signature is not known."""
    registers = SYSCALL_REGISTERS if syscall else CALL_REGISTERS
    names = _SIGNATURES.get(function, _GENERIC)
    return tuple(
        Argument(name.rstrip("*"), register, name.endswith("*"))
        for name, register in zip(names, registers, strict=False)
    )


def gdb_condition(text: str, function: str, *, syscall: bool) -> str:
    """`length == 16384 && fd == -1` in gdb's language. UsageError names the part that is not valid."""
    known = arguments_of(function, syscall=syscall)
    names = {argument.name: argument.expression for argument in known}
    registers = SYSCALL_REGISTERS if syscall else CALL_REGISTERS
    names.update((f"arg{n}", f"((unsigned long)${register})") for n, register in enumerate(registers))
    out: list[str] = []
    position = 0
    while text[position:].strip():
        token = _TOKEN.match(text, position)
        if token is None:
            raise _invalid(text, text[position:].strip()[:20], names)
        position = token.end()
        if token["number"] or token["operator"]:
            begins = not out or _is_operator(out[-1])
            if token["operator"] == "(" and not begins:
                raise UsageError(f"--if {text!r}: a call is not allowed", why="memforensics runs no code in the target")
            if token["operator"] and begins and token["operator"] not in _PREFIXES:
                raise _invalid(text, token["operator"], names)  # "*" would read memory of the target
            out.append(token["number"] or token["operator"])
        elif token["register"]:
            if token["register"][1:] not in _GENERAL_REGISTERS:
                raise _invalid(text, token["register"], names)
            out.append(f"((unsigned long){token['register']})")
        else:
            if token["name"] not in names:
                raise _invalid(text, token["name"], names)
            out.append(names[token["name"]])
    if not out:
        raise UsageError("--if needs an expression", enable="for example: --if 'length >= 1048576'")
    if not _balanced(out):
        raise UsageError(f"--if {text!r}: the parentheses do not match")
    return " ".join(out)


def _is_operator(token: str) -> bool:
    return token != ")" and not token[0].isalnum() and not token.startswith("((")


def _balanced(tokens: list[str]) -> bool:
    depth = 0
    for token in tokens:
        depth += {"(": 1, ")": -1}.get(token, 0)
        if depth < 0:
            return False
    return depth == 0


def _invalid(text: str, part: str, names: Mapping[str, str]) -> UsageError:
    return UsageError(
        f"--if {text!r}: {part!r} is not valid",
        why="it takes numbers, arithmetic, comparisons, && and ||, registers such as $rsi, and "
        + ", ".join(sorted(names)),
        enable="for example: --if 'length >= 1048576 && fd == -1'",
    )
