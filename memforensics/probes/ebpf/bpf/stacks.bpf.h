/*
 * What mmap.bpf.c and faults.bpf.c share: walking a stack and sending it to user space, the table of traced processes,
 * settings, losses, and events of processes. For inclusion in BPF C that bcc compiles, after unwind.bpf.h and
 * (WITH_PYTHON) pyframes.bpf.h. layout.py has the shapes. bcc rewrites map calls in the main file only, so the loader
 * pastes this text in place of the #include line.
 *
 * The including program defines before: struct target (with `as` and `parent`), struct request (with `as` and `t_ns`),
 * struct site (with `first_ns`); LOSS_RING_FULL, _SITES_FULL, _TRUNCATED, _UNREADABLE, _NO_COPY, _TARGETS_FULL and
 * LOSSES; and by -D PAGE_BYTES, HASH_FLAGS, SLOTS, MAX_TARGETS, MAX_SITES, MAX_MISSES, EVENT_PAGES, MISS_PAGES,
 * FORK_CHILD_PID (offset of child_pid in the sched_process_fork event), WITH_PYTHON, PIDNS_DEVICE, PIDNS_INODE (0: the
 * kernel's own numbers).
 * After: on_record; and forked(), execed() and thread_left() for the other state that it keeps of a process or thread.
 *
 * One event runs these programs in turn, by tail calls, each verified separately: the program of the event, on_walk,
 * on_python, on_record. When a rule was missing, on_record calls on_miss, which calls on_record again.
 */
#ifndef MEMFORENSICS_STACKS_BPF_H
#define MEMFORENSICS_STACKS_BPF_H

#define NEXT_WALK 0
#define NEXT_PYTHON 1 /* without Python the same program as NEXT_RECORD */
#define NEXT_RECORD 2
#define NEXT_MISS 3

#define EVENT_STACK 1 /* the stack of a new site */
#define EVENT_MISS 2  /* the same, with registers and a copy of the stack from the frame without a rule on */
#define EVENT_FORK 8  /* a is the tid of the child, b its address space if it is a process */
#define EVENT_EXEC 9  /* `as` ended; a is the new one */
#define EVENT_EXIT 10 /* the thread group's leader exits */
#define EVENT_CODE 11 /* an executable file was mapped at [a, b): rules for these addresses are stale */

#define KIND_SHARED 0x10 /* flags in struct stack_event.kind */
#define KIND_FILE 0x20
#define KIND_TMPFS 0x40
#define KIND_PLACED 0x80

#define COPY_BYTES 16384
#define COPY_STEP 1024
#define CPU_TOKENS 64                  /* copies that a CPU may make in a burst ... */
#define CPU_TOKEN_NS 1000000ULL        /* ... and one more in each such period */
#define PC_FREE 64                     /* copies for one pc without a delay */
#define MISS_FIRST_WAIT_NS 4000000ULL  /* then, and for one signature always: a delay, which doubles each time */
#define MISS_LAST_WAIT_NS 1000000000ULL

#define SIGNATURE_BYTES 4096 /* of the stack are searched for return addresses */
#define SIGNATURE_STEP 512   /* divides a page, so that no read fails because it crosses the top of the stack */
#define SIGNATURE_WORDS 128  /* candidates for return addresses, at most */

struct head {
    u32 type, tid;
    u64 as;
    u64 t_ns;
};

struct range_event {
    struct head head;
    u64 a, b;
    u64 site;
    u64 born_ns;
    u64 old, old_length;
};

struct stack_event {
    struct head head;
    u64 site;
    u32 kind, aarch64;
    u64 rip, rsp, rbp, rbx, r12, r13, r14, r15; /* of the leaf; on aarch64 pc, sp, x29, x30 and nothing */
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

/* A signature or a pc for which user space got a copy of the stack */
struct miss {
    u64 next_ns, wait_ns, count;
};

struct tokens {
    u64 left, filled_ns;
};

struct settings {
    u32 recording;          /* 0: stacks are learned, and nothing is recorded yet */
    u32 window_budget;      /* unsampled stacks per window of a size class (faults: of a process); saved up */
    u32 sample_period;      /* beyond the budget one of so many is walked; a power of two */
    u32 byte_sample_period; /* in pages: a smaller mapping is sampled in proportion to its size; 0: all are walked */
    u32 exact;              /* mmap.bpf.c: user space compares times of birth with its own clock now */
};

struct site_key {
    u64 as, site;
};

/* A target that user space added, at the index of its tgid. A hash look-up takes a call or two, which is most of the
 * cost of most events. So `targets` has only those whose slot is taken, and children of fork. */
struct slot {
    struct target target;
    u32 tgid, unused; /* 0: the slot is free; written last */
};

/* Of one CPU: the time at the start of this jiffy, and the state of its random numbers */
struct cpu_state {
    u64 jiffies, ns;
    u64 rng_state;
};

/* Of one CPU: the runs for traced processes, and their time from the check that the process is traced. Each run that
 * walks a stack is timed. Of the others one in TIMED_PERIOD is timed and counts for all of them; the period is a prime
 * because calls come in patterns. */
struct run_time {
    u64 runs, ns;
    u64 began_ns, weight; /* of the current run; 0: it is not timed */
    u64 left;             /* runs until the next one that is timed */
};
#define TIMED_PERIOD 31

/* struct scratch.miss */
#define MISS_NEW 0
#define MISS_REPORTED 1   /* user space has or gets a copy: the site is that of the signature */
#define MISS_UNREPORTED 2 /* user space gets none: the site is that of all stacks that begin with these frames */

struct scratch {
    struct request request;
    struct pt_regs regs;
    u32 miss, unused;
    u64 step[SIGNATURE_STEP / 8];
    u64 words[SIGNATURE_WORDS];
    struct stack_event out;
};

BPF_ARRAY(slots, struct slot, SLOTS);
BPF_ARRAY(slot_overflow, u64, SLOTS); /* whether `targets` ever had one of this index */
BPF_HASH(targets, u32, struct target, MAX_TARGETS);
BPF_F_TABLE("hash", struct site_key, struct site, sites, MAX_SITES, HASH_FLAGS);
BPF_TABLE("lru_hash", struct rule_key, struct miss, misses, MAX_MISSES);
BPF_PERCPU_ARRAY(cpu_tokens, struct tokens, 1);
BPF_PERCPU_ARRAY(scratches, struct scratch, 1);
BPF_PERCPU_ARRAY(cpu_states, struct cpu_state, 1);
BPF_PERCPU_ARRAY(run_times, struct run_time, 1);
BPF_PERCPU_ARRAY(losses, u64, LOSSES);
BPF_ARRAY(settings, struct settings, 1);
BPF_ARRAY(generation, u64, 1); /* numbers address spaces */
BPF_RINGBUF_OUTPUT(events, EVENT_PAGES);
BPF_RINGBUF_OUTPUT(copies, MISS_PAGES); /* of misses: a lost one changes no sum */
BPF_PROG_ARRAY(programs, 4);

struct sys_enter {
    u64 common;
    s64 nr;
    u64 args[6];
};

struct sys_exit {
    u64 common;
    s64 nr;
    s64 ret;
};

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

static __always_inline void count_losses(u32 what, u64 many) {
    u64 *count = losses.lookup(&what);
    if (count)
        *count += many;
}

static __always_inline void count_loss(u32 what) {
    count_losses(what, 1);
}

static __always_inline struct settings *my_settings(void) {
    u32 zero = 0;
    return settings.lookup(&zero);
}

static __always_inline int is_recording(void) {
    struct settings *now = my_settings();
    return now && now->recording;
}

static __always_inline struct scratch *my_scratch(void) {
    u32 zero = 0;
    return scratches.lookup(&zero);
}

/* Returns 0 when the process is not traced. */
static __always_inline struct target *target_of(u32 tgid) {
    u32 at = tgid & (SLOTS - 1);
    struct slot *slot = slots.lookup(&at);
    u64 *overflowed = slot_overflow.lookup(&at);
    if (!slot || !overflowed)
        return 0;
    if (slot->tgid == tgid)
        return &slot->target;
    return *overflowed ? targets.lookup(&tgid) : 0;
}

static __always_inline int enter_target(u32 tgid, struct target *target) {
    u32 at = tgid & (SLOTS - 1);
    u64 *overflowed = slot_overflow.lookup(&at);
    if (targets.update(&tgid, target) != 0)
        return -1;
    if (overflowed)
        *overflowed = 1;
    return 0;
}

/* A time between the start of this jiffy and now, without a call. The clock may lag while a virtual CPU is not
 * scheduled. */
static __always_inline u64 coarse_now(void) {
    u32 zero = 0;
    struct cpu_state *state = cpu_states.lookup(&zero);
    u64 jiffies = bpf_jiffies64();
    if (!state)
        return bpf_ktime_get_ns();
    if (state->jiffies != jiffies) {
        state->jiffies = jiffies;
        state->ns = bpf_ktime_get_ns();
    }
    return state->ns;
}

/* Counts a run for a traced process. `runs`: 2 when the same call runs a second program that does not count itself. */
static __always_inline void begin_run(u64 runs) {
    u32 zero = 0;
    struct run_time *mine = run_times.lookup(&zero);
    if (!mine)
        return;
    mine->runs += runs;
    mine->began_ns = 0;
    if (mine->left) {
        mine->left -= 1;
        return;
    }
    mine->left = TIMED_PERIOD - 1;
    mine->weight = TIMED_PERIOD;
    mine->began_ns = bpf_ktime_get_ns();
}

/* The run walks a stack from now on, and is timed. */
static __always_inline void time_walk(u64 now) {
    u32 zero = 0;
    struct run_time *mine = run_times.lookup(&zero);
    if (!mine)
        return;
    mine->weight = 1;
    mine->began_ns = now;
}

static __always_inline void end_run(void) {
    u32 zero = 0;
    struct run_time *mine = run_times.lookup(&zero);
    if (mine && mine->began_ns)
        mine->ns += (bpf_ktime_get_ns() - mine->began_ns) * mine->weight;
}

static __always_inline u64 new_address_space(u32 tgid) {
    u32 zero = 0;
    u64 number = 0;
    u64 *next = generation.lookup(&zero);
    if (next)
        number = __sync_fetch_and_add(next, 1) + 1;
    return (number << 32) | tgid;
}

/* Returns 0 when the event was dropped, and counts that. */
static __always_inline int emit_event(u32 type, u32 tid, u64 as, u64 t_ns, u64 a, u64 b, u64 site, u64 born_ns, u64 old,
                                u64 old_length) {
    struct range_event event = {.head = {.type = type, .tid = tid, .as = as, .t_ns = t_ns},
                                .a = a,
                                .b = b,
                                .site = site,
                                .born_ns = born_ns,
                                .old = old,
                                .old_length = old_length};
    if (events.ringbuf_output(&event, sizeof(event), 0) == 0)
        return 1;
    count_loss(LOSS_RING_FULL);
    return 0;
}

/* The user's registers at a system call or fault; some hold its arguments. They are read in place, without a call. */
static __always_inline void *user_registers(void) {
    return (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
}

#define user_register(registers, name) \
    (*(volatile __typeof__(((struct pt_regs *)0)->name) *)((char *)(registers) + __builtin_offsetof(struct pt_regs, name)))

static __always_inline void read_registers(struct scratch *scratch) {
    bpf_probe_read_kernel(&scratch->regs, sizeof(scratch->regs), user_registers());
}

int on_walk(void *ctx) {
    struct scratch *scratch = my_scratch();
    if (!scratch)
        return 0;
    struct walk *walk = &scratch->out.walk;
    scratch->miss = MISS_NEW;
    walk->pc = scratch->regs.USER_PC;
    walk->rsp = scratch->regs.USER_SP;
    walk->rbp = scratch->regs.USER_FP;
    walk->g = scratch->regs.USER_G;
#if ON_AARCH64
    walk->lr = scratch->regs.regs[30];
    scratch->out.aarch64 = 1;
#endif
    walk_stack(walk, scratch->request.as);
    programs.call(ctx, NEXT_PYTHON);
    return 0;
}

#if WITH_PYTHON
/* A child of fork has the CPython of its parent. */
static __always_inline void inherit_python(u32 tgid) {
    if (py_processes.lookup(&tgid))
        return;
    struct target *target = target_of(tgid);
    if (!target || target->parent == 0)
        return;
    u32 parent = target->parent;
    struct py_process *same = py_processes.lookup(&parent);
    if (same)
        py_processes.update(&tgid, same);
}

/* Walks the Python frames of the current task and adds them to the hash of the native frames. */
int on_python(void *ctx) {
    struct scratch *scratch = my_scratch();
    if (!scratch)
        return 0;
    struct py_stack *python = &scratch->out.python;
    u64 id = current_id();
    u64 hash = scratch->out.walk.hash;
    inherit_python(id >> 32);
    u32 i, count = py_walk(id >> 32, (u32)id, python);
    for (i = 0; i < PY_MAX_FRAMES; i++) {
        asm volatile("" : "+r"(i)); /* or LLVM walks a pointer, whose bounds the verifier cannot see */
        if (i >= count)
            break;
        struct py_frame *frame = &python->frames[i & (PY_MAX_FRAMES - 1)];
        hash = hash_with(hash, frame->flags & PY_SHIM ? 1 : frame->code ^ (u64)(u32)frame->instruction << 40);
    }
    scratch->out.walk.hash = hash;
    programs.call(ctx, NEXT_RECORD);
    return 0;
}
#endif

static __always_inline void identify_python(struct stack_event *out) {
#if WITH_PYTHON
    py_identify(current_id() >> 32, &out->python);
#endif
}

/* Returns 1 for 0, and 0 for any other number below 2^63, without a branch; pyframes.bpf.h has the reason. */
static __always_inline u64 is_zero(u64 value) {
    asm volatile("" : "+r"(value));
    value = (value - 1) >> 63;
    asm volatile("" : "+r"(value));
    return value;
}

/* Returns 1 when the eight bytes before an address may end in a call: E8 and FF /2 of x86-64 in all their lengths; BL
 * and BLR of aarch64, also those that authenticate. */
static __always_inline u64 ends_in_call(u64 code) {
#if ON_AARCH64
    return is_zero((code >> 58) ^ 0x25) | is_zero((code >> 32 & 0xfefff000) ^ 0xd63f0000);
#else
    return is_zero((code >> 24 & 0xff) ^ 0xe8) | is_zero((code >> 48 & 0x38ff) ^ 0x10ff) |
           is_zero((code >> 40 & 0x38ff) ^ 0x10ff) | is_zero((code >> 32 & 0x38ff) ^ 0x10ff) |
           is_zero((code >> 16 & 0x38ff) ^ 0x10ff) | is_zero((code >> 8 & 0x38ff) ^ 0x10ff);
#endif
}

/* Tells one incomplete stack from another until its rules are learned, by its depth and the return addresses among its
 * words. Other words vary from call to call and do not count, so that calls from one place share a signature. */
static __always_inline u64 signature_of(struct scratch *scratch) {
    struct walk *walk = &scratch->out.walk;
    u64 top = walk->rsp, from = top & ~(SIGNATURE_STEP - 1ULL);
    u64 hash = hash_with(scratch->out.site, top);
    u64 found = 0, at = from, word, may, code;
    u32 i, step;

    for (step = 0; step < SIGNATURE_BYTES / SIGNATURE_STEP; step++) {
        bpf_probe_read_user(scratch->step, SIGNATURE_STEP, (void *)at); /* zeros, beyond the top of the stack */
        for (i = 0; i < SIGNATURE_STEP / 8; i++) {
            word = scratch->step[i];
#if ON_AARCH64
            word &= AARCH64_ADDRESS;
#endif
            may = (top - at - 1) >> 63; /* 0 at and above the top */
            may &= is_zero(word >> USER_BITS) & (1 - is_zero(word >> 16));
            may &= 1 - is_zero((word - top + (1 << 20)) >> 21); /* 0 for an address on the stack */
            may &= (found - SIGNATURE_WORDS) >> 63;
            scratch->words[found & (SIGNATURE_WORDS - 1)] = word;
            found += may;
            at += 8;
        }
    }
    for (i = 0; i < SIGNATURE_WORDS; i++) {
        if (i >= found)
            break;
        word = scratch->words[i];
        code = 0;
        bpf_probe_read_user(&code, sizeof(code), (void *)(word - 8));
        hash ^= (hash_with(hash, word) ^ hash) * ends_in_call(code);
    }
    return hash;
}

/* Limits copies by signature (one copy is enough), by pc (a hot path must not starve a rare one) and by CPU. */
static __always_inline int may_copy(struct rule_key *by_pc, u64 now) {
    u32 zero = 0;
    struct tokens *tokens = cpu_tokens.lookup(&zero);
    struct miss *miss = misses.lookup(by_pc);
    if (!tokens)
        return 0;
    u64 more = (now - tokens->filled_ns) / CPU_TOKEN_NS;
    if (more) {
        tokens->left = tokens->left + more > CPU_TOKENS ? CPU_TOKENS : tokens->left + more;
        tokens->filled_ns = now;
    }
    if (tokens->left == 0 || (miss && now < miss->next_ns))
        return 0;
    tokens->left -= 1;
    if (!miss) {
        struct miss first = {.wait_ns = MISS_FIRST_WAIT_NS, .count = 1};
        misses.update(by_pc, &first);
        return 1;
    }
    miss->count += 1;
    if (miss->count >= PC_FREE) {
        miss->next_ns = now + miss->wait_ns;
        if (miss->wait_ns < MISS_LAST_WAIT_NS)
            miss->wait_ns *= 2;
    }
    return 1;
}

/* Sends the frames so far, registers, and a copy of the stack. The copy starts at the leaf, so that user space can
 * follow every register; when the frame without a rule is too far up for that, it starts there. Returns 0 when it was
 * sent. */
static __always_inline int send_miss(struct stack_event *out, struct pt_regs *regs) {
    u64 rsp;
    u32 i, end = 0;
    out->head.type = EVENT_MISS;
    out->rip = regs->USER_PC;
    out->rsp = regs->USER_SP;
    out->rbp = regs->USER_FP;
#if ON_AARCH64
    out->rbx = regs->regs[30];
#else
    out->rbx = regs->bx;
    out->r12 = regs->r12;
    out->r13 = regs->r13;
    out->r14 = regs->r14;
    out->r15 = regs->r15;
#endif
    rsp = out->walk.rsp - out->rsp < COPY_BYTES / 2 ? out->rsp : out->walk.rsp;
    identify_python(out);
    struct miss_event *event = copies.ringbuf_reserve(sizeof(struct miss_event));
    if (!event) {
        out->head.type = EVENT_STACK;
        return -1;
    }
    bpf_probe_read_kernel(&event->stack, sizeof(event->stack), out);
    out->head.type = EVENT_STACK;
    event->copied_from = rsp;
    /* One long read would fail as a whole, so this reads in steps that end at pages. What cannot be read stays zero:
     * that is stack that nobody has touched yet, which is zero, or memory above the top of the stack. */
    for (i = 0; i < COPY_BYTES / COPY_STEP; i++) {
        u64 from = rsp + i * COPY_STEP, before = -rsp, after = rsp;
        u8 *to = event->copy + i * COPY_STEP;
        if (bpf_probe_read_user(to, COPY_STEP, (void *)from) == 0) {
            end = i + 1;
            continue;
        }
        asm volatile("" : "+r"(before)); /* or LLVM computes one from the other, and the verifier sees no bound */
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
        count_loss(LOSS_NO_COPY);
    copies.ringbuf_submit(event, 0);
    return 0;
}

/* Whether user space has or gets a copy of a stack of this signature. */
static __always_inline int already_reported(struct scratch *scratch, u64 signature) {
    struct stack_event *out = &scratch->out;
    u64 now = scratch->request.t_ns;
    struct rule_key by_signature = {.as = scratch->request.as, .pc = signature};
    struct rule_key by_pc = {.as = scratch->request.as, .pc = out->walk.pc - out->walk.is_return};
    struct miss *before = misses.lookup(&by_signature);
    u64 site = out->site;

    if (before && now < before->next_ns)
        return 1;
    if (!may_copy(&by_pc, now))
        return before != 0;
    out->site = signature;
    if (send_miss(out, &scratch->regs) != 0) {
        out->site = site;
        return before != 0;
    }
    if (before) {
        before->next_ns = now + before->wait_ns;
        if (before->wait_ns < MISS_LAST_WAIT_NS)
            before->wait_ns *= 2;
        return 1;
    }
    struct miss first = {.next_ns = now + MISS_FIRST_WAIT_NS, .wait_ns = MISS_FIRST_WAIT_NS, .count = 1};
    misses.update(&by_signature, &first);
    return 1;
}

/* An incomplete stack gets the site of its signature when user space has or gets a copy of such a stack. Else its site
 * is that of all stacks that begin with the same frames. */
int on_miss(void *ctx) {
    struct scratch *scratch = my_scratch();
    if (!scratch)
        return 0;
    u64 signature = signature_of(scratch);
    if (already_reported(scratch, signature)) {
        scratch->out.site = signature;
        scratch->miss = MISS_REPORTED;
    } else {
        scratch->miss = MISS_UNREPORTED;
    }
    programs.call(ctx, NEXT_RECORD);
    return 0;
}

/* Computes the site of the current stack. The kind, how the walk ended and (where `weight` is the site's) the weight
 * make sites of their own. Returns 1 when a rule was missing, and on_miss has to run. */
static __always_inline int needs_stack_copy(struct scratch *scratch, u32 kind, u32 weight) {
    struct stack_event *out = &scratch->out;
    if (scratch->miss != MISS_NEW)
        return 0;
    out->head.as = scratch->request.as;
    out->head.tid = (u32)current_id();
    out->head.t_ns = scratch->request.t_ns;
    out->head.type = EVENT_STACK;
    out->kind = kind;
    out->site = hash_with(out->walk.hash, kind | (u64)out->walk.ended << 32);
    if (weight > 1)
        out->site = hash_with(out->site, weight);
    return out->walk.ended == WALK_MISS;
}

/* The site of the current stack; the stack of a new site is sent to user space. Returns 0, and counts a loss, when
 * there is no room. */
static __always_inline struct site *get_or_create_site(struct scratch *scratch) {
    struct stack_event *out = &scratch->out;
    struct site_key key = {.as = scratch->request.as, .site = out->site};
    struct site first = {.first_ns = scratch->request.t_ns};
    struct site *site = sites.lookup(&key);

    if (out->walk.ended == WALK_LIMIT)
        count_loss(LOSS_TRUNCATED);
    else if (out->walk.ended == WALK_UNREADABLE || out->walk.ended == WALK_STUCK)
        count_loss(LOSS_UNREADABLE);
    if (site)
        return site;
    if (sites.insert(&key, &first) != 0 && !sites.lookup(&key)) {
        count_loss(LOSS_SITES_FULL);
        return 0;
    }
    if (scratch->miss != MISS_REPORTED)
        identify_python(out);
    if (scratch->miss != MISS_REPORTED && events.ringbuf_output(out, sizeof(*out), 0) != 0) {
        sites.delete(&key); /* the next event by this stack tries again */
        count_loss(LOSS_RING_FULL);
        return 0;
    }
    return sites.lookup(&key);
}

/* The sample period for a length, when the period for one page is `byte_sample_period`. A power of two. */
static __always_inline u32 period_for(u32 byte_sample_period, u64 length) {
    if (!byte_sample_period)
        return 1;
    u64 pages = length >> 12;
    u64 many = byte_sample_period / (pages + !pages);
    many |= many >> 1;
    many |= many >> 2;
    many |= many >> 4;
    many |= many >> 8;
    many |= many >> 16;
    many -= many >> 1; /* the highest bit alone */
    return many | !many;
}

/* Returns `one_of` with a probability of 1 in `one_of`, else 0. This does not depend on the stack, so the sums of a
 * site's weights are unbiased. Marsaglia's xorshift is cheaper than a call. */
static __always_inline u32 sample_weight(u32 one_of) {
    u32 zero = 0;
    struct cpu_state *state;
    u64 rng_state;
    if (one_of == 1)
        return 1;
    state = cpu_states.lookup(&zero);
    if (!state)
        return 0;
    rng_state = state->rng_state;
    if (!rng_state)
        rng_state = (u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32() | 1;
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    state->rng_state = rng_state;
    return (rng_state >> 32 & (one_of - 1)) == 0 ? one_of : 0;
}

/* A new thread sends this event too. It is added as if it were a process: a tid is never the tgid of another process,
 * and nothing looks it up. It is removed when the thread exits. */
static __always_inline void forked(struct target *child, struct target *parent);
static __always_inline void execed(struct target *target);
static __always_inline void thread_left(u64 id);

int on_fork(void *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *parent = target_of(tgid);
    if (!parent)
        return 0;
#if PIDNS_INODE
    return 0; /* the event has the PID of another namespace; user space finds the child in /proc */
#else
    u32 child = *(u32 *)((char *)ctx + FORK_CHILD_PID);
    struct target fresh = {.as = new_address_space(child), .parent = tgid};
    forked(&fresh, parent);
    if (enter_target(child, &fresh) != 0)
        count_loss(LOSS_TARGETS_FULL);
    emit_event(EVENT_FORK, (u32)id, parent->as, bpf_ktime_get_ns(), child, fresh.as, 0, 0, 0, 0);
    return 0;
#endif
}

int on_exec(void *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = target_of(tgid);
    if (!target)
        return 0;
    u64 before = target->as;
    target->as = new_address_space(tgid);
    target->parent = 0;
    execed(target);
#if WITH_PYTHON
    py_processes.delete(&tgid);
#endif
    emit_event(EVENT_EXEC, (u32)id, before, bpf_ktime_get_ns(), target->as, 0, 0, 0, 0, 0);
    return 0;
}

int on_exit(void *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32, tid = (u32)id;
    struct target *target = target_of(tgid);
    if (!target)
        return 0;
    thread_left(id);
    if (tid != tgid) {
        targets.delete(&tid);
        return 0;
    }
    emit_event(EVENT_EXIT, tid, target->as, bpf_ktime_get_ns(), 0, 0, 0, 0, 0, 0);
    return 0;
}

#endif
