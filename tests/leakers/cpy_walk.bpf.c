/* Each mmap of a process that py_processes knows, with its Python stack. */
#include <uapi/linux/ptrace.h>
#include "pyframes.bpf.h"

struct walked {
    u32 tgid;
    u32 tid;
    struct py_stack python;
};

BPF_PERCPU_ARRAY(scratch, struct walked, 1);
BPF_RINGBUF_OUTPUT(events, 1024);

int on_mmap(void *ctx) {
    u64 id = bpf_get_current_pid_tgid();
    u32 zero = 0, tgid = id >> 32;
    if (!py_processes.lookup(&tgid))
        return 0;
    struct walked *out = scratch.lookup(&zero);
    if (!out)
        return 0;
    out->tgid = tgid;
    out->tid = id;
    py_walk(tgid, id, &out->python);
    events.ringbuf_output(out, sizeof(*out), 0);
    return 0;
}
