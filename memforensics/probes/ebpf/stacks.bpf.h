/*
 * A stack from the event to user space: native frames, Python frames, and a copy of the stack where a rule is missing.
 * For inclusion in BPF C that bcc compiles, after unwind.bpf.h and (WITH_PYTHON) pyframes.bpf.h. layout.py has the
 * shapes; bcc rewrites map calls in the main file only, so the loader pastes this text in place of the #include line.
 *
 * The including program defines LOSS_NO_COPY and lose(), and by -D HASH_FLAGS, MISS_PAGES, WITH_PYTHON, PIDNS_DEVICE,
 * PIDNS_INODE (0: the kernel's own numbers).
 */
#ifndef MEMFORENSICS_STACKS_BPF_H
#define MEMFORENSICS_STACKS_BPF_H

#define EVENT_STACK 1 /* a site is new: its stack */
#define EVENT_MISS 2  /* the same, with registers and a copy of the stack from where no rule was known */

#define COPY_BYTES 16384
#define COPY_STEP 1024
#define CPU_TOKENS 64                  /* copies that a CPU may make at once ... */
#define CPU_TOKEN_NS 1000000ULL        /* ... and one more in each of these */
#define PC_FREE 64                     /* copies for one pc without a wait */
#define MISS_FIRST_WAIT_NS 4000000ULL  /* then, and for one signature always: a wait, doubled at each */
#define MISS_LAST_WAIT_NS 1000000000ULL

struct head {
    u32 type, tid;
    u64 as;
    u64 t_ns;
};

struct stack_event {
    struct head head;
    u64 site;
    u32 kind, unused;
    u64 rip, rsp, rbp, rbx, r12, r13, r14, r15; /* of the leaf */
    struct walk walk;
#if WITH_PYTHON
    struct py_stack python;
#endif
};

struct miss_event {
    struct stack_event stack;
    u64 copied_from, copied;
    u8 copy[COPY_BYTES];
};

struct miss {
    u64 next_ns, wait_ns, count;
};

struct tokens {
    u64 left, filled_ns;
};

BPF_TABLE("lru_hash", struct rule_key, struct miss, misses, 16384);
BPF_PERCPU_ARRAY(cpu_tokens, struct tokens, 1);
BPF_RINGBUF_OUTPUT(copies, MISS_PAGES); /* misses: their loss costs no bookkeeping */

static __always_inline u64 current_id(void) {
#if PIDNS_INODE
    struct bpf_pidns_info here = {};
    if (bpf_get_ns_current_pid_tgid(PIDNS_DEVICE, PIDNS_INODE, &here, sizeof(here)) != 0)
        return 0;
    return ((u64)here.tgid << 32) | here.pid;
#else
    return bpf_get_current_pid_tgid();
#endif
}

static __always_inline void read_registers(struct pt_regs *regs) {
    bpf_probe_read_kernel(regs, sizeof(*regs), (void *)bpf_task_pt_regs(bpf_get_current_task_btf()));
}

static __always_inline int may_copy_for(struct rule_key *key, u64 now, u64 free) {
    struct miss *miss = misses.lookup(key);
    if (!miss) {
        struct miss first = {.next_ns = free ? 0 : now + MISS_FIRST_WAIT_NS, .wait_ns = MISS_FIRST_WAIT_NS, .count = 1};
        misses.update(key, &first);
        return 1;
    }
    if (now < miss->next_ns)
        return 0;
    miss->count += 1;
    if (miss->count >= free) {
        miss->next_ns = now + miss->wait_ns;
        if (miss->wait_ns < MISS_LAST_WAIT_NS)
            miss->wait_ns *= 2;
    }
    return 1;
}

/* Copies are limited by signature (one tells all), by pc (a hot path must not starve a rare one) and by CPU. */
static __always_inline int may_copy(u64 as, struct walk *walk, u64 signature, u64 now) {
    u32 zero = 0;
    struct rule_key by_signature = {.as = as, .pc = signature};
    struct rule_key by_pc = {.as = as, .pc = walk->pc - walk->is_return};
    struct tokens *tokens = cpu_tokens.lookup(&zero);
    if (!tokens)
        return 0;
    u64 more = (now - tokens->filled_ns) / CPU_TOKEN_NS;
    if (more) {
        tokens->left = tokens->left + more > CPU_TOKENS ? CPU_TOKENS : tokens->left + more;
        tokens->filled_ns = now;
    }
    if (tokens->left == 0 || !may_copy_for(&by_signature, now, 0) || !may_copy_for(&by_pc, now, PC_FREE))
        return 0;
    tokens->left -= 1;
    return 1;
}

/* What tells one unfinished stack from another until it is learned: the same thread, at the same depth of its stack,
 * came there by the same frames. At the leaf the word on the stack, mostly the return address, is looked at too. */
static __always_inline u64 signature_of(u64 site, struct walk *walk, u32 tid) {
    u64 word = 0;
    if (walk->count == 1)
        user_word(walk->rsp, &word);
    return hash_with(hash_with(hash_with(site, walk->rsp), tid), word);
}

/* Sends the stack so far, with registers and a copy of the stack: from the leaf on, so that user space can follow every
 * register, or, where the frame that has no rule is too far up for that, from there. 0 when it went. */
static __always_inline int send_miss(struct stack_event *out, struct pt_regs *regs) {
    u64 rsp;
    u32 i, end = 0;
    out->head.type = EVENT_MISS;
    out->rip = regs->ip;
    out->rsp = regs->sp;
    out->rbp = regs->bp;
    out->rbx = regs->bx;
    out->r12 = regs->r12;
    out->r13 = regs->r13;
    out->r14 = regs->r14;
    out->r15 = regs->r15;
    rsp = out->walk.rsp - out->rsp < COPY_BYTES / 2 ? out->rsp : out->walk.rsp;
    struct miss_event *event = copies.ringbuf_reserve(sizeof(struct miss_event));
    if (!event) {
        out->head.type = EVENT_STACK;
        return -1;
    }
    bpf_probe_read_kernel(&event->stack, sizeof(event->stack), out);
    out->head.type = EVENT_STACK;
    event->copied_from = rsp;
    /* In steps, cut at pages: one long read would fail whole. What cannot be read stands as zeros, which is what is in
     * stack that nobody has touched yet; the rest is above the top of the stack. */
    for (i = 0; i < COPY_BYTES / COPY_STEP; i++) {
        u64 from = rsp + i * COPY_STEP, before = -rsp, after = rsp;
        u8 *to = event->copy + i * COPY_STEP;
        if (bpf_probe_read_user(to, COPY_STEP, (void *)from) == 0) {
            end = i + 1;
            continue;
        }
        asm volatile("" : "+r"(before)); /* or LLVM reckons one from the other, and the verifier sees no bound */
        asm volatile("" : "+r"(after));
        before &= COPY_STEP - 1;
        after &= COPY_STEP - 1;
        if (bpf_probe_read_user(to, before, (void *)from) == 0 && before)
            end = i + 1;
        if (i + 1 < COPY_BYTES / COPY_STEP && bpf_probe_read_user(to + before, after, (void *)(from + before)) == 0 && after)
            end = i + 1;
    }
    event->copied = end * COPY_STEP;
    if (end == 0)
        lose(LOSS_NO_COPY);
    copies.ringbuf_submit(event, 0);
    return 0;
}

#if WITH_PYTHON
/* The Python frames of the current task, mixed into the hash of the native ones. */
static __always_inline void add_python_frames(struct stack_event *out) {
    struct py_stack *python = &out->python;
    u64 id = current_id();
    u64 hash = out->walk.hash;
    u32 i, count = py_walk(id >> 32, (u32)id, python);
    for (i = 0; i < PY_MAX_FRAMES; i++) {
        asm volatile("" : "+r"(i)); /* or LLVM walks a pointer, whose bounds the verifier cannot see */
        if (i >= count)
            break;
        struct py_frame *frame = &python->frames[i & (PY_MAX_FRAMES - 1)];
        hash = hash_with(hash, frame->flags & PY_SHIM ? 1 : frame->code ^ (u64)(u32)frame->instruction << 40);
    }
    out->walk.hash = hash;
}
#endif

#endif
