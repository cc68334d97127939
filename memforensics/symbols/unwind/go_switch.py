"""Go's switch from the system stack back to a goroutine's stack, decoded from its code.

runtime.systemstack calls a function on the system stack of the thread. The code after that call
(src/runtime/asm_amd64.s, "switch back to g") loads the goroutine's stack pointer: thread-local g -> g.m -> m.curg ->
sched.sp. It shows the offsets of this version of Go, so no symbols are needed. Go 1.17 to 1.20 do not change the frame
pointer; later versions load it from sched.bp.
"""

import re

from memforensics.symbols.unwind.rule import Rule

CODE_BYTES = 64
_SWITCH_BACK = re.compile(
    rb"\x64\x48\x8b\x04\x25(?P<tls>....)"  # mov %fs:tls,%rax
    rb"\x48\x8b\x58(?P<m>.)"  # mov m(%rax),%rbx
    rb"\x48\x8b\x83(?P<curg>....)"  # mov curg(%rbx),%rax
    rb"\x64\x48\x89\x04\x25(?P=tls)"  # mov %rax,%fs:tls
    rb"\x48\x8b\x60(?P<sp>.)"  # mov sp(%rax),%rsp
    rb"(?:\x48\x8b\x68(?P<bp>.))?"  # mov bp(%rax),%rbp
    rb"\x48\xc7\x40(?P=sp)\x00\x00\x00\x00",  # movq $0,sp(%rax)
    re.DOTALL,
)
_BP_AFTER_SP = 48  # struct gobuf to Go 1.20: sp, pc, g, ctxt, ret, lr, bp


def switch_rule(code: bytes) -> Rule | None:
    """The rule at the return address of that call; None if the code is not a switch."""
    found = _SWITCH_BACK.match(code)
    if found is None:
        return None
    m, sp = found["m"][0], found["sp"][0]
    return Rule(
        cfa_base="go-switch",
        cfa_offset=int.from_bytes(found["curg"], "little", signed=True),
        ra_offset=sp,
        rbp_offset=found["bp"][0] if found["bp"] else sp + _BP_AFTER_SP,
        via=m,
    )
