/*
 * The ledger of mappings, kept in the kernel: who mapped what is still mapped.
 *
 * Removals are booked when munmap and mremap are *entered* (a freed address is handed out again before the exit event
 * comes) and undone when they fail; additions when the call *returns*. A mapping that goes as it came, whole, is opened
 * and closed here, in `live`. Whatever is cut, joined or replaced is told to user space, which keeps intervals
 * (ledger.py), in the order in which it happened.
 *
 * Constants by -D: HASH_FLAGS, MAX_LIVE, MAX_SITES, MAX_TARGETS, EVENT_PAGES, MISS_PAGES, FORK_CHILD_PID (offset of child_pid in the
 * sched_process_fork event), TRACK_FILES, PIDNS_DEVICE and PIDNS_INODE (0: the kernel's own numbers), WITH_PYTHON.
 */
#include <uapi/linux/ptrace.h>
#include "unwind.bpf.h"
#if WITH_PYTHON
#include "pyframes.bpf.h"
#endif

#define PAGE_UP(size) (((size) + 4095ULL) & ~4095ULL)
#define FAILED(ret) ((u64)(ret) >= (u64)-4095L)

#define MAP_FIXED 0x10
#define MAP_ANONYMOUS 0x20
#define MAP_FIXED_NOREPLACE 0x100000
#define MAP_HUGETLB 0x40000
#define MREMAP_FIXED 2
#define MREMAP_DONTUNMAP 4

/* struct stack_event.kind: how the memory was obtained, and flags */
#define KIND_MMAP 1
#define KIND_MREMAP 2
#define KIND_BRK 3
#define KIND_SHARED 0x10
#define KIND_FILE 0x20

#define EVENT_STACK 1   /* a site is new: its stack */
#define EVENT_MISS 2    /* the same, with registers and a copy of the stack from where no rule was known */
#define EVENT_UNMAP 3   /* [a, b) goes away; no whole mapping of `live` */
#define EVENT_EVICT 4   /* a mapping of `live` is handed to user space: [a, b), site, born */
#define EVENT_UNDO 5    /* the last EVENT_UNMAP of this thread did not happen */
#define EVENT_REMAP 6   /* mremap moved what the last EVENT_UNMAP of this thread took: now [a, b), by site */
#define EVENT_BRK 7     /* [a, b) was added to the heap, by site */
#define EVENT_FORK 8    /* a is the child's tid, b its address space should it be a process */
#define EVENT_EXEC 9    /* `as` ended; a is the new one */
#define EVENT_EXIT 10   /* the thread group's leader exits */

/* Counted in `losses`; layout.LOSSES has the words for each. */
#define LOSS_RING_FULL 0
#define LOSS_LIVE_FULL 1
#define LOSS_SITES_FULL 2
#define LOSS_TRUNCATED 3  /* more frames than MAX_NATIVE */
#define LOSS_UNREADABLE 4 /* an unreadable word, or a step that led nowhere */
#define LOSS_NO_COPY 5
#define LOSS_TARGETS_FULL 6
#define LOSSES 7

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

struct target {
    u64 as;
    u64 brk;
    u64 parent; /* tgid it was forked from, with the same program in it; 0: none, or it has exec'ed */
};

struct live_key {
    u64 as, addr;
};

struct live {
    u64 length, site, born_ns;
};

struct site_key {
    u64 as, site;
};

struct site {
    u64 allocated_bytes, allocated_count, freed_bytes, freed_count, first_ns, last_ns;
};

#define PENDING_NONE 0
#define PENDING_LIVE 1  /* taken out of `live`: can be put back */
#define PENDING_EVENT 2 /* told to user space */

struct pending {
    u64 addr, length;
    struct live live;
    u64 state;
};

/* What is to be booked, handed from the program of one system call to the walker. */
struct request {
    u64 as, t_ns;
    u64 addr, length;
    u64 old, old_length;
    u32 kind, event; /* event 0: a whole new mapping, to `live` */
};

struct scratch {
    struct request request;
    struct pt_regs regs;
    struct stack_event out;
};

struct miss {
    u64 next_ns, wait_ns, count;
};

struct tokens {
    u64 left, filled_ns;
};

BPF_HASH(targets, u32, struct target, MAX_TARGETS);
BPF_F_TABLE("hash", struct live_key, struct live, live, MAX_LIVE, HASH_FLAGS);
BPF_F_TABLE("hash", struct site_key, struct site, sites, MAX_SITES, HASH_FLAGS);
BPF_TABLE("lru_hash", u64, struct pending, pending, 16384);
BPF_TABLE("lru_hash", struct rule_key, struct miss, misses, 16384);
BPF_PERCPU_ARRAY(cpu_tokens, struct tokens, 1);
BPF_PERCPU_ARRAY(scratches, struct scratch, 1);
BPF_PERCPU_ARRAY(losses, u64, LOSSES);
BPF_ARRAY(booking, u32, 1);    /* 0: stacks are learned, nothing is booked yet */
BPF_ARRAY(generation, u64, 1); /* numbers address spaces */
BPF_RINGBUF_OUTPUT(events, EVENT_PAGES);
BPF_RINGBUF_OUTPUT(copies, MISS_PAGES); /* misses: their loss costs no bookkeeping */
BPF_PROG_ARRAY(programs, 3);

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

static __always_inline void lose(u32 what) {
    u64 *count = losses.lookup(&what);
    if (count)
        *count += 1;
}

static __always_inline int is_booking(void) {
    u32 zero = 0;
    u32 *on = booking.lookup(&zero);
    return on && *on;
}

static __always_inline u64 new_address_space(u32 tgid) {
    u32 zero = 0;
    u64 number = 0;
    u64 *next = generation.lookup(&zero);
    if (next)
        number = __sync_fetch_and_add(next, 1) + 1;
    return (number << 32) | tgid;
}

static __always_inline void tell(u32 type, u32 tid, u64 as, u64 t_ns, u64 a, u64 b, u64 site, u64 born_ns, u64 old,
                                 u64 old_length) {
    struct range_event event = {.head = {.type = type, .tid = tid, .as = as, .t_ns = t_ns},
                                .a = a,
                                .b = b,
                                .site = site,
                                .born_ns = born_ns,
                                .old = old,
                                .old_length = old_length};
    if (events.ringbuf_output(&event, sizeof(event), 0) != 0)
        lose(LOSS_RING_FULL);
}

static __always_inline void book_freed(u64 as, u64 id, u64 bytes, u64 count) {
    struct site_key key = {.as = as, .site = id};
    struct site *site = sites.lookup(&key);
    if (site) {
        __sync_fetch_and_add(&site->freed_bytes, bytes);
        __sync_fetch_and_add(&site->freed_count, count);
    }
}

/* [addr, addr + length) is about to go. What that was is left in `out`, should the call fail. */
static __always_inline void take(u32 tid, u64 as, u64 t_ns, u64 addr, u64 length, struct pending *out) {
    struct live_key key = {.as = as, .addr = addr};
    struct live *found = live.lookup(&key);
    out->addr = addr;
    out->length = length;
    out->state = PENDING_EVENT;
    if (found) {
        out->live = *found;
        live.delete(&key);
        if (out->live.length == length) {
            out->state = PENDING_LIVE;
            book_freed(as, out->live.site, length, 1);
            return;
        }
        tell(EVENT_EVICT, tid, as, t_ns, addr, addr + out->live.length, out->live.site, out->live.born_ns, 0, 0);
    }
    tell(EVENT_UNMAP, tid, as, t_ns, addr, addr + length, 0, 0, 0, 0);
}

static __always_inline void take_on_entry(u64 id, u64 as, u64 addr, u64 length) {
    struct pending taken = {};
    take((u32)id, as, bpf_ktime_get_ns(), addr, length, &taken);
    struct pending *mine = pending.lookup(&id);
    if (mine)
        *mine = taken;
    else
        pending.update(&id, &taken);
}

static __always_inline void give_back(u64 id, u64 as, u64 addr, u64 length) {
    struct pending *mine = pending.lookup(&id);
    if (!mine || mine->addr != addr || mine->length != length)
        return;
    if (mine->state == PENDING_LIVE) {
        struct live_key key = {.as = as, .addr = addr};
        live.update(&key, &mine->live);
        book_freed(as, mine->live.site, -mine->live.length, -1ULL);
    } else if (mine->state == PENDING_EVENT) {
        tell(EVENT_UNDO, (u32)id, as, bpf_ktime_get_ns(), addr, addr + length, 0, 0, 0, 0);
    }
    mine->state = PENDING_NONE;
}

static __always_inline int removable(u64 addr, u64 length) {
    return (addr & 4095) == 0 && length != 0 && length < (1ULL << 56);
}

static __always_inline struct scratch *my_scratch(void) {
    u32 zero = 0;
    return scratches.lookup(&zero);
}

static __always_inline void read_registers(struct scratch *scratch) {
    bpf_probe_read_kernel(&scratch->regs, sizeof(scratch->regs), (void *)bpf_task_pt_regs(bpf_get_current_task_btf()));
}

/* The programs that one event goes through, one after the other: each is verified by itself. */
#define NEXT_WALK 0
#define NEXT_PYTHON 1 /* the same program as NEXT_BOOK where Python is not looked at */
#define NEXT_BOOK 2

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
static __always_inline int send_miss(struct stack_event *out) {
    u64 rsp = out->walk.rsp - out->rsp < COPY_BYTES / 2 ? out->rsp : out->walk.rsp;
    u32 i;
    struct miss_event *event = copies.ringbuf_reserve(sizeof(struct miss_event));
    if (!event)
        return -1;
    bpf_probe_read_kernel(&event->stack, sizeof(event->stack), out);
    event->copied_from = rsp;
    /* in steps: near the top of the stack one long read would fail whole */
    for (i = 0; i < COPY_BYTES / COPY_STEP; i++) {
        if (bpf_probe_read_user(event->copy + i * COPY_STEP, COPY_STEP, (void *)(rsp + i * COPY_STEP)) != 0)
            break;
    }
    event->copied = i * COPY_STEP;
    if (i == 0)
        lose(LOSS_NO_COPY);
    copies.ringbuf_submit(event, 0);
    return 0;
}

static __always_inline void book(struct scratch *scratch, u64 id) {
    struct request *request = &scratch->request;
    struct live_key at = {.as = request->as, .addr = request->addr};
    struct live fresh = {.length = request->length, .site = id, .born_ns = request->t_ns};
    u64 end = request->addr + request->length;

    if (request->event) {
        tell(request->event, scratch->out.head.tid, request->as, request->t_ns, request->addr, end, id,
             request->t_ns, request->old, request->old_length);
        return;
    }
    if (live.insert(&at, &fresh) == 0)
        return;
    struct live *before = live.lookup(&at);
    if (!before) {
        lose(LOSS_LIVE_FULL);
        book_freed(request->as, id, request->length, 1);
        return;
    }
    /* What stood there was cut, and user space has not yet taken it over. */
    tell(EVENT_EVICT, scratch->out.head.tid, request->as, request->t_ns, request->addr,
         request->addr + before->length, before->site, before->born_ns, 0, 0);
    live.update(&at, &fresh);
}

int on_walk(void *ctx) {
    struct scratch *scratch = my_scratch();
    if (!scratch)
        return 0;
    struct walk *walk = &scratch->out.walk;
    walk->pc = scratch->regs.ip;
    walk->rsp = scratch->regs.sp;
    walk->rbp = scratch->regs.bp;
    walk_stack(walk, scratch->request.as);
    programs.call(ctx, NEXT_PYTHON);
    return 0;
}

#if WITH_PYTHON
/* A child of fork has its parent's CPython. */
static __always_inline void inherit_python(u32 tgid) {
    if (py_processes.lookup(&tgid))
        return;
    struct target *target = targets.lookup(&tgid);
    if (!target || target->parent == 0)
        return;
    u32 parent = target->parent;
    struct py_process *same = py_processes.lookup(&parent);
    if (same)
        py_processes.update(&tgid, same);
}

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
    programs.call(ctx, NEXT_BOOK);
    return 0;
}
#endif

int on_book(void *ctx) {
    struct scratch *scratch = my_scratch();
    if (!scratch)
        return 0;
    struct request *request = &scratch->request;
    struct stack_event *out = &scratch->out;
    struct pt_regs *regs = &scratch->regs;
    struct site_key key = {.as = request->as};
    struct site *site;
    int is_miss, copied = 0;

    out->head.as = request->as;
    out->head.tid = (u32)current_id();
    out->head.t_ns = request->t_ns;
    out->kind = request->kind;
    /* the same frames by another way (kind), or not known to their end, are a site of their own */
    key.site = hash_with(out->walk.hash, out->kind | (u64)out->walk.ended << 32);
    is_miss = out->walk.ended == WALK_MISS;
    out->head.type = EVENT_STACK;
    if (is_miss)
        key.site = signature_of(key.site, &out->walk, out->head.tid);
    out->site = key.site;
    if (is_miss && may_copy(request->as, &out->walk, key.site, request->t_ns)) {
        out->head.type = EVENT_MISS;
        out->rip = regs->ip;
        out->rsp = regs->sp;
        out->rbp = regs->bp;
        out->rbx = regs->bx;
        out->r12 = regs->r12;
        out->r13 = regs->r13;
        out->r14 = regs->r14;
        out->r15 = regs->r15;
        copied = send_miss(out) == 0;
        out->head.type = EVENT_STACK;
    }
    if (!is_booking())
        return 0;
    if (out->walk.ended == WALK_LIMIT)
        lose(LOSS_TRUNCATED);
    else if (out->walk.ended != WALK_COMPLETE && !is_miss)
        lose(LOSS_UNREADABLE);
    site = sites.lookup(&key);
    if (!site) {
        struct site first = {.first_ns = request->t_ns};
        if (!copied && events.ringbuf_output(out, sizeof(*out), 0) != 0) {
            lose(LOSS_RING_FULL); /* tried again at the next mapping by this stack */
            return 0;
        }
        sites.insert(&key, &first);
        site = sites.lookup(&key);
        if (!site) {
            lose(LOSS_SITES_FULL);
            return 0;
        }
    }
    if (request->event != EVENT_REMAP) {
        __sync_fetch_and_add(&site->allocated_bytes, request->length);
        __sync_fetch_and_add(&site->allocated_count, 1);
    }
    site->last_ns = request->t_ns;
    book(scratch, key.site);
    return 0;
}

int on_mmap_exit(struct sys_exit *ctx) {
    u64 ret = ctx->ret;
    if (FAILED(ret))
        return 0;
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = targets.lookup(&tgid);
    if (!target)
        return 0;
    struct scratch *scratch = my_scratch();
    if (!scratch)
        return 0;
    read_registers(scratch); /* the arguments are still in the user's registers */
    u64 flags = scratch->regs.r10;
    u64 length = PAGE_UP(scratch->regs.si);
    if (flags & MAP_HUGETLB) {
        u64 shift = (flags >> 26) & 63;
        u64 huge = 1ULL << (shift ? shift : 21);
        length = (scratch->regs.si + huge - 1) & ~(huge - 1);
    }
    u64 now = bpf_ktime_get_ns();
    if ((flags & MAP_FIXED) && !(flags & MAP_FIXED_NOREPLACE) && is_booking()) {
        struct pending replaced = {};
        take((u32)id, target->as, now - 1, ret, length, &replaced);
    }
    u32 kind = KIND_MMAP;
    if (!(flags & MAP_ANONYMOUS)) {
        if (!TRACK_FILES)
            return 0;
        kind |= KIND_FILE;
    }
    if ((flags & 3) != 2) /* MAP_SHARED or MAP_SHARED_VALIDATE */
        kind |= KIND_SHARED;
    scratch->request.as = target->as;
    scratch->request.t_ns = now;
    scratch->request.addr = ret;
    scratch->request.length = length;
    scratch->request.kind = kind;
    scratch->request.event = 0;
    programs.call(ctx, NEXT_WALK);
    return 0;
}

int on_munmap_enter(struct sys_enter *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = targets.lookup(&tgid);
    if (!target || !is_booking())
        return 0;
    u64 addr = ctx->args[0], length = PAGE_UP(ctx->args[1]);
    if (removable(addr, length))
        take_on_entry(id, target->as, addr, length);
    return 0;
}

int on_munmap_exit(struct sys_exit *ctx) {
    if (ctx->ret == 0)
        return 0;
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = targets.lookup(&tgid);
    struct scratch *scratch = my_scratch();
    if (!target || !scratch)
        return 0;
    read_registers(scratch);
    give_back(id, target->as, scratch->regs.di, PAGE_UP(scratch->regs.si));
    return 0;
}

int on_mremap_enter(struct sys_enter *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = targets.lookup(&tgid);
    if (!target || !is_booking())
        return 0;
    u64 addr = ctx->args[0], length = PAGE_UP(ctx->args[1]);
    if (removable(addr, length) && !(ctx->args[3] & MREMAP_DONTUNMAP))
        take_on_entry(id, target->as, addr, length);
    return 0;
}

int on_mremap_exit(struct sys_exit *ctx) {
    u64 ret = ctx->ret;
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = targets.lookup(&tgid);
    struct scratch *scratch = my_scratch();
    if (!target || !scratch)
        return 0;
    read_registers(scratch);
    u64 old = scratch->regs.di, old_length = PAGE_UP(scratch->regs.si);
    u64 length = PAGE_UP(scratch->regs.dx), flags = scratch->regs.r10;
    if (FAILED(ret)) {
        give_back(id, target->as, old, old_length);
        return 0;
    }
    u64 now = bpf_ktime_get_ns();
    u32 event = 0;
    if (flags & MREMAP_FIXED) {
        struct pending replaced = {};
        take((u32)id, target->as, now - 1, ret, length, &replaced);
    }
    if (old_length != 0 && !(flags & MREMAP_DONTUNMAP)) {
        struct pending *mine = pending.lookup(&id);
        if (!mine || mine->addr != old || mine->length != old_length)
            return 0; /* entered before we booked */
        if (mine->state == PENDING_EVENT)
            event = EVENT_REMAP;
        mine->state = PENDING_NONE;
    }
    scratch->request.as = target->as;
    scratch->request.t_ns = now;
    scratch->request.addr = ret;
    scratch->request.length = length;
    scratch->request.old = old;
    scratch->request.old_length = old_length;
    scratch->request.kind = KIND_MREMAP;
    scratch->request.event = event;
    programs.call(ctx, NEXT_WALK);
    return 0;
}

int on_brk_exit(struct sys_exit *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = targets.lookup(&tgid);
    if (!target)
        return 0;
    u64 now = PAGE_UP((u64)ctx->ret), before = target->brk;
    target->brk = now;
    if (before == 0 || now == before)
        return 0;
    u64 t_ns = bpf_ktime_get_ns();
    if (now < before) {
        if (is_booking())
            tell(EVENT_UNMAP, (u32)id, target->as, t_ns, now, before, 0, 0, 0, 0);
        return 0;
    }
    struct scratch *scratch = my_scratch();
    if (!scratch)
        return 0;
    read_registers(scratch);
    scratch->request.as = target->as;
    scratch->request.t_ns = t_ns;
    scratch->request.addr = before;
    scratch->request.length = now - before;
    scratch->request.kind = KIND_BRK;
    scratch->request.event = EVENT_BRK;
    programs.call(ctx, NEXT_WALK);
    return 0;
}

/* Threads are new tasks too. A tid is never another process's tgid, and goes when the thread exits: so the child is
 * entered as if it were a process, and nobody looks a thread up. */
int on_fork(void *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *parent = targets.lookup(&tgid);
    if (!parent)
        return 0;
    u32 child = *(u32 *)((char *)ctx + FORK_CHILD_PID);
    struct target fresh = {.as = new_address_space(child), .brk = parent->brk, .parent = tgid};
#if PIDNS_INODE
    return 0; /* the event has the kernel's number; user space finds the child in /proc */
#else
    if (targets.update(&child, &fresh) != 0)
        lose(LOSS_TARGETS_FULL);
    tell(EVENT_FORK, (u32)id, parent->as, bpf_ktime_get_ns(), child, fresh.as, 0, 0, 0, 0);
    return 0;
#endif
}

int on_exec(void *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = targets.lookup(&tgid);
    if (!target)
        return 0;
    u64 before = target->as;
    target->as = new_address_space(tgid);
    target->brk = 0;
    target->parent = 0;
#if WITH_PYTHON
    py_processes.delete(&tgid);
#endif
    tell(EVENT_EXEC, (u32)id, before, bpf_ktime_get_ns(), target->as, 0, 0, 0, 0, 0);
    return 0;
}

int on_exit(void *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32, tid = (u32)id;
    struct target *target = targets.lookup(&tgid);
    if (!target)
        return 0;
    pending.delete(&id);
    if (tid != tgid) {
        targets.delete(&tid);
        return 0;
    }
    tell(EVENT_EXIT, tid, target->as, bpf_ktime_get_ns(), 0, 0, 0, 0, 0, 0);
    return 0;
}
