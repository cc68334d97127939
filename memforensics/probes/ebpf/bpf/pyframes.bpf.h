/*
 * The Python frames of the current task, walked in the kernel. For inclusion in BPF C that bcc compiles.
 *
 * Interface (all that an including program uses):
 *
 *   map       py_processes       u32 tgid (the kernel's) -> struct py_process. User space adds an entry for each
 *                                CPython process (runtimes/cpython/kernel.py packs the value), and removes it when the
 *                                process exits or execs. A child of fork needs an entry of its own, with the same value.
 *   struct    py_stack           the result, in the caller's per-cpu scratch (3 KiB), never on the BPF stack. After a
 *                                walk only `count`, `flags` and frames[0 .. count) are valid.
 *   function  py_walk(tgid, tid, out)
 *                                walks the stack of the current task, leaf first. tgid and tid are the halves of
 *                                bpf_get_current_pid_tgid(). Returns out->count. Call it once in a program: it is
 *                                inlined, with 128 steps for frames and 256 for thread states.
 *   function  py_identify(tgid, out)
 *                                adds a checksum of its code object to each frame. Code that ran once (exec, an import)
 *                                may be freed, and its address reused, before user space reads it. It takes three reads
 *                                a frame, so call it for stacks that are sent to user space only.
 *
 * Offsets are data (struct py_process), so one program serves several CPython versions at a time. bcc rewrites map
 * calls in the main file only (clang front end of bcc 0.26): in a file that is #included they compile to calls through
 * a null pointer, and the verifier says "unknown opcode 8d". So the loader pastes this text in place of the #include
 * line. It needs u8 to u64 only.
 */
#ifndef MEMFORENSICS_PYFRAMES_BPF_H
#define MEMFORENSICS_PYFRAMES_BPF_H

#define PY_MAX_FRAMES 128   /* a power of two: indices are masked for the verifier */
#define PY_MAX_THREADS 256  /* thread states that are searched for the one of an unknown thread */
#define PY_MAX_STATES 4     /* thread states of one thread; a power of two */
#define PY_RAW_BYTES 128    /* the largest frame structure that is read, a power of two */
#define PY_RETRY_NS 1000000 /* with several interpreters a thread is looked up again after this time */
/* A thread without a thread state or without frames is looked up again after this time, and more for each step that the
 * look-up took: C++ threads take a new thread state for each call (PyGILState_Ensure). */
#define PY_RETRY_EMPTY_NS 20000
#define PY_RETRY_STEP_NS 2000
#define PY_RETRY_MANY_NS 100000000 /* the same, after PY_MAX_THREADS were searched and none matched */

/* struct py_frame.flags. One native _PyEval_EvalFrameDefault covers the frames up to one that is PY_ENTRY,
 * included, or up to one that is PY_SHIM, left out. */
#define PY_ENTRY 1 /* the outermost Python frame of its native eval frame (3.11; every frame of 3.8 to 3.10) */
#define PY_CHECK_SHIFT 16
#define PY_SHIM 2  /* no Python code: the mark that ends a native eval frame's run (3.12 and later) */

/* struct py_stack.flags */
#define PY_FOUND 1     /* a thread state of this thread was found (count may be 0: no Python code runs in it) */
#define PY_TRUNCATED 2 /* more than PY_MAX_FRAMES frames: the outermost are missing */
#define PY_UNREADABLE 4 /* a frame could not be read: the rest is missing */
#define PY_TOO_MANY 8  /* more than PY_MAX_THREADS thread states, and this thread's was not among those searched; or it
                          has more than PY_MAX_STATES */
#define PY_SEVERAL 16  /* the process has several interpreters: to 3.11 a thread state names the thread that made it, not
                          the one that runs it (Python/pystate.c, PyThreadState_Swap()) */

struct py_process {
    u64 runtime;           /* address of _PyRuntime */
    u64 ns_device;         /* PID namespace of the target (stat of /proc/PID/ns/pid); inode 0: tids are the kernel's */
    u64 ns_inode;
    u32 interpreters_head; /* in _PyRuntime */
    u32 interpreter_next;  /* in PyInterpreterState */
    u32 threads_head;
    u32 thread_next;       /* in PyThreadState */
    u32 thread_ident;      /* native_thread_id, or thread_id (a pthread_t) */
    u32 pthread_tid;       /* not 0: thread_ident is a pthread_t, and the tid lies this far into it */
    u32 thread_frame;      /* frame, current_frame, or cframe */
    u32 cframe_frame;      /* with has_cframe: current_frame in _PyCFrame */
    u32 has_cframe;
    u32 frame_bytes;       /* read from each frame: through the last field below; below PY_RAW_BYTES */
    u32 frame_previous;    /* in the frame; 8-byte aligned, like the next two */
    u32 frame_code;
    u32 frame_instruction; /* prev_instr or instr_ptr; f_lasti (4 bytes) */
    u32 frame_mark;        /* is_entry or owner (1 byte) */
    u32 mark_mask;         /* a frame is marked when (the byte & mark_mask) == mark_value */
    u32 mark_value;
    u32 mark_flag;         /* and then it is PY_ENTRY, or PY_SHIM */
    u32 unit_shift;        /* 1 where f_lasti counts 2-byte units (3.10), else 0 */
    u32 code_qualname;     /* in PyCodeObject; these three make the check of a frame */
    u32 code_linetable;
    u32 code_firstlineno;
    u32 unused;
    u64 pointer_mask;      /* all ones where the instruction is a pointer (3.11 and later), 0 where it is an index */
    u64 code_start;        /* 3.11 and later: co_code_adaptive in PyCodeObject */
};

struct py_frame {
    u64 code;        /* address of the PyCodeObject; of a shim: anything */
    s32 instruction; /* bytes from the start of its bytecode; negative: not begun; of a shim: anything */
    u32 flags;       /* PY_ENTRY, PY_SHIM; after py_identify() the check of the code object from PY_CHECK_SHIFT on */
};

struct py_stack {
    u32 count;
    u32 flags;
    struct py_frame frames[PY_MAX_FRAMES];
    u64 raw[PY_RAW_BYTES / 8]; /* scratch of the walk */
};

/*
 * The thread states of one thread, the newest interpreter's first, and of one interpreter the newest first. It has one
 * in each interpreter that it has entered; and to 3.11 one more for a thread that it is starting and that does not run
 * yet (Modules/_threadmodule.c, _PyThreadState_Prealloc()). Where there are more than fit, the last place is the
 * oldest's.
 */
struct py_threads {
    u64 states[PY_MAX_STATES];
    u64 head;       /* interpreters.head at the time: another one means a new sub-interpreter */
    u64 checked_ns;
    u32 several;    /* there were several interpreters */
    u32 too_many;
    u32 steps; /* that the look-up took */
    u32 unused;
};

BPF_HASH(py_processes, u32, struct py_process, 1024);
BPF_TABLE("lru_hash", u64, struct py_threads, py_thread_states, 16384);

static __always_inline u64 py_read_u64(u64 address) {
    u64 value = 0;
    bpf_probe_read_user(&value, sizeof(value), (void *)address);
    return value;
}

/* Whether a thread state is that of the thread `tid` (as the target's PID namespace numbers it). */
static __always_inline int py_is_of(struct py_process *process, u64 state, u32 tid) {
    u64 ident = py_read_u64(state + process->thread_ident);
    if (process->pthread_tid) {
        u32 value = 0;
        if (ident == 0)
            return 0;
        bpf_probe_read_user(&value, sizeof(value), (void *)(ident + process->pthread_tid));
        return value == tid;
    }
    return (u32)ident == tid;
}

/*
 * The loops below have no branches except those that leave. Each branch doubles the paths that the verifier walks, and
 * it forgets the states of early iterations (kernel/bpf/verifier.c, is_state_visited(): evicted after 3 misses). 64
 * iterations with three branches took 250,000 instructions of the verifier; without them they take 10,000.
 */

/* Returns 1 for 0, and 0 for any other number below 2^63. A comparison would be a branch, and a mask of all ones makes
 * the verifier fork; products with 0 or 1 do neither. */
static __always_inline u64 py_is_zero(u64 value) {
    asm volatile("" : "+r"(value));
    value = (value - 1) >> 63;
    asm volatile("" : "+r"(value)); /* else the compiler turns the products into branches */
    return value;
}

/* Walks the interpreters and their thread states. One iteration reads a thread state, or when there is none, the next
 * interpreter. */
static __always_inline void py_look_up(struct py_process *process, u32 tid, struct py_threads *found) {
    u64 interpreter = found->head, state = 0, first = 0, second = 0, third = 0, fourth = 0, matches = 0;
    u64 base, place, between, within, one, two, match;
    u64 direct = py_is_zero(process->pthread_tid);
    u32 steps;
    for (steps = 0; steps < PY_MAX_THREADS; steps++) {
        u32 ident = 0;
        between = py_is_zero(state);
        within = 1 - between;
        base = state + interpreter * between;
        if (base == 0)
            break;
        place = base + process->threads_head * between + process->thread_ident * within;
        one = py_read_u64(place);
        two = py_read_u64(base + process->interpreter_next * between + process->thread_next * within);
        place = place * direct + (one + process->pthread_tid) * (1 - direct);
        bpf_probe_read_user(&ident, sizeof(ident), (void *)place);
        match = py_is_zero(ident ^ tid) * within;
        first += state * match * py_is_zero(matches);
        second += state * match * py_is_zero(matches ^ 1);
        third += state * match * py_is_zero(matches ^ 2);
        fourth += (state - fourth) * match * (matches >> 2 | py_is_zero(matches ^ 3));
        matches += match * (1 - (matches >> 2)); /* 4 at most */
        interpreter = two * between + interpreter * within;
        state = one * between + two * within;
    }
    found->states[0] = first;
    found->states[1] = second;
    found->states[2] = third;
    found->states[3] = fourth;
    found->several = py_read_u64(found->head + process->interpreter_next) != 0;
    found->too_many = base != 0 && (first == 0 || found->several);
    found->steps = steps;
}

static __always_inline u64 py_top_frame(struct py_process *process, u64 state) {
    if (state == 0)
        return 0;
    u64 frame = py_read_u64(state + process->thread_frame);
    if (frame && process->has_cframe)
        frame = py_read_u64(frame + process->cframe_frame);
    return frame;
}

static __always_inline void py_close_gap(u64 *before, u64 *after) {
    u64 gap = py_is_zero(*before);
    *before += *after * gap;
    *after *= 1 - gap;
}

/* The first frames of the chains of a thread, in order, without gaps; then 0. */
static __always_inline void py_tops(struct py_process *process, struct py_threads *threads, u64 *tops) {
    tops[0] = py_top_frame(process, threads->states[0]);
    tops[1] = tops[2] = tops[3] = 0;
    if (threads->states[1] == 0)
        return;
    tops[1] = py_top_frame(process, threads->states[1]);
    tops[2] = py_top_frame(process, threads->states[2]);
    tops[3] = py_top_frame(process, threads->states[3]);
    py_close_gap(&tops[2], &tops[3]);
    py_close_gap(&tops[1], &tops[2]);
    py_close_gap(&tops[2], &tops[3]);
    py_close_gap(&tops[0], &tops[1]);
    py_close_gap(&tops[1], &tops[2]);
    py_close_gap(&tops[2], &tops[3]);
}

/* A freed thread state still looks like one without frames, so a thread without frames is looked up again. */
static __always_inline void py_thread(struct py_process *process, u32 tgid, u32 tid, struct py_threads *found, u64 *tops) {
    u64 key = ((u64)tgid << 32) | tid;
    u64 now = bpf_ktime_get_ns();
    u32 target_tid = tid;
    if (process->ns_inode) {
        struct bpf_pidns_info here = {};
        if (bpf_get_ns_current_pid_tgid(process->ns_device, process->ns_inode, &here, sizeof(here)) == 0)
            target_tid = here.pid;
    }
    u64 head = py_read_u64(process->runtime + process->interpreters_head);
    struct py_threads *known = py_thread_states.lookup(&key);
    if (known && known->head == head) {
        u64 age = now - known->checked_ns;
        u64 wait = known->too_many ? PY_RETRY_MANY_NS : PY_RETRY_EMPTY_NS + known->steps * PY_RETRY_STEP_NS;
        *found = *known;
        if (known->states[0] == 0) {
            if (age < wait)
                return;
        } else if ((age < PY_RETRY_NS || !known->several) && py_is_of(process, found->states[0], target_tid) &&
                   (found->states[1] == 0 || py_is_of(process, found->states[1], target_tid)) &&
                   (found->states[2] == 0 || py_is_of(process, found->states[2], target_tid)) &&
                   (found->states[3] == 0 || py_is_of(process, found->states[3], target_tid))) {
            py_tops(process, found, tops);
            if (tops[0] || age < wait)
                return;
        }
    }
    found->head = head;
    found->checked_ns = now;
    py_look_up(process, target_tid, found);
    py_thread_states.update(&key, found);
    py_tops(process, found, tops);
}

static __always_inline void py_identify(u32 tgid, struct py_stack *out) {
    struct py_process *process = py_processes.lookup(&tgid);
    u32 i, count = out->count;
    if (!process)
        return;
    for (i = 0; i < PY_MAX_FRAMES; i++) {
        asm volatile("" : "+r"(i)); /* or LLVM walks a pointer, whose bounds the verifier cannot see */
        if (i >= count)
            break;
        struct py_frame *frame = &out->frames[i & (PY_MAX_FRAMES - 1)];
        u32 line = 0;
        u64 check = py_read_u64(frame->code + process->code_qualname) * 0x9E3779B97F4A7C15ULL;
        check ^= py_read_u64(frame->code + process->code_linetable) * 0xC2B2AE3D27D4EB4FULL;
        bpf_probe_read_user(&line, sizeof(line), (void *)(frame->code + process->code_firstlineno));
        check ^= line * 0x165667B19E3779F9ULL;
        check = (check >> 48 | 1) << PY_CHECK_SHIFT;
        frame->flags |= (u32)check * (1 - (frame->flags >> 1 & 1)); /* a shim has none */
    }
}

static __always_inline u32 py_walk(u32 tgid, u32 tid, struct py_stack *out) {
    struct py_threads threads = {};
    u64 frame, empty, code, place, mark;
    u64 tops[2 * PY_MAX_STATES] = {}; /* zeros behind the last */
    u32 i, next = 1;
    char *raw = (char *)out->raw;

    out->count = 0;
    out->flags = 0;
    struct py_process *process = py_processes.lookup(&tgid);
    if (!process)
        return 0;
    py_thread(process, tgid, tid, &threads, tops);
    if (threads.too_many)
        out->flags |= PY_TOO_MANY;
    if (threads.states[0] == 0)
        return 0;
    out->flags |= PY_FOUND;
    if (threads.several)
        out->flags |= PY_SEVERAL;
    frame = tops[0];
    for (i = 0; i < PY_MAX_FRAMES; i++) {
        empty = py_is_zero(frame);
        frame += tops[next & (2 * PY_MAX_STATES - 1)] * empty;
        next += empty;
        if (frame == 0)
            break;
        if (bpf_probe_read_user(raw, process->frame_bytes & (PY_RAW_BYTES - 1), (void *)frame) != 0)
            break;
        code = *(u64 *)(raw + (process->frame_code & 0x78)) & ~7ULL; /* 3.14 tags its references in the low bits */
        place = *(u64 *)(raw + (process->frame_instruction & 0x78));
        place -= (code + process->code_start) & process->pointer_mask;
        mark = *(u8 *)(raw + (process->frame_mark & 0x7f));
        mark = (mark & process->mark_mask) ^ process->mark_value; /* 0: marked */
        struct py_frame *seen = &out->frames[i & (PY_MAX_FRAMES - 1)];
        seen->code = code;
        seen->instruction = (u32)place << (process->unit_shift & 1);
        seen->flags = process->mark_flag * (u32)py_is_zero(mark);
        out->count = i + 1;
        frame = *(u64 *)(raw + (process->frame_previous & 0x78));
    }
    if (frame)
        out->flags |= out->count == PY_MAX_FRAMES ? PY_TRUNCATED : PY_UNREADABLE;
    return out->count;
}

#endif
