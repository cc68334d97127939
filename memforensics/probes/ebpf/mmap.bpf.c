/*
 * The ledger of mappings, kept in the kernel: who mapped what is still mapped.
 *
 * Removals are booked when munmap and mremap are *entered* (a freed address is handed out again before the exit event
 * comes) and undone when they fail; additions when the call *returns*. A mapping that goes as it came, whole, is opened
 * and closed here, in `live`. Whatever is cut, joined or replaced is told to user space, which keeps intervals
 * (ledger.py), in the order in which it happened.
 *
 * A closed entry stays in `live`, marked, and serves the next mapping at its address: two look-ups a mapping, where
 * inserting and deleting would be dearer than all the rest. User space sweeps out those that were not used again.
 *
 * A walk of the stack costs several times what the account costs. So mappings are divided into classes of one length,
 * and a class that is busy and balanced is sampled: see `deserves_walk`.
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

#define PROT_EXEC 4
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
#define KIND_SHM 4
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
#define EVENT_CODE 11   /* a file was mapped at [a, b) to be executed: rules of what was there are stale */
#define EVENT_ATTACH 12 /* shmat at a, by site; how long it is stands in /proc */
#define EVENT_DETACH 13 /* shmdt of what was attached at a */

/* Counted in `losses`; layout.LOSSES has the words for each. */
#define LOSS_RING_FULL 0
#define LOSS_LIVE_FULL 1
#define LOSS_SITES_FULL 2
#define LOSS_TRUNCATED 3  /* more frames than MAX_NATIVE */
#define LOSS_UNREADABLE 4 /* an unreadable word, or a step that led nowhere */
#define LOSS_NO_COPY 5
#define LOSS_TARGETS_FULL 6
#define LOSSES 7

/* Settings, by user space */
#define SETTING_BOOKING 0 /* 0: stacks are learned, nothing is booked yet */
#define SETTING_FREE 1    /* walks of one class in a window without drawing lots; saved up for SAVED_WINDOWS */
#define SETTING_RARITY 2  /* beyond these, in a balanced class: one of so many; a power of two */
#define SETTINGS 3

#define CLASSES 8192
#define WINDOW_NS 16000000ULL
#define SAVED_WINDOWS 512
#define FIRST_HOLD_NS (WINDOW_NS * 64)
#define QUIET_NS (WINDOW_NS * 4096)

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
    u64 unwalked; /* mappings without a look at the stack */
    u64 cut_ns;   /* the last removal that was told to user space */
};

struct live_key {
    u64 as, addr;
};

struct live {
    u64 length, site, born_ns;
    u32 weight; /* of its stack, which stands for so many; 0: it was not walked, and `site` is 0 */
    u32 gone;   /* 0: it stands; else closed, by the thread of that number */
};
#define GONE_FOR_GOOD 0xffffffff /* nothing can undo it */

/* Mappings of one length in one address space. Two may share an entry: then both are walked sooner. */
struct size_class {
    s64 bytes;  /* that stand */
    s64 low;    /* the least that stood in this window, */
    s64 record; /* ... and the most that this ever was */
    u64 window_ends_ns, walk_until_ns, hold_ns;
    u64 free; /* walks left without a lot */
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
    u64 addr, length, state;
};

/* What is to be booked, handed from the program of one system call to the walker. */
struct request {
    u64 as, t_ns;
    u64 addr, length;
    u64 old, old_length;
    u32 kind, event; /* event 0: a whole new mapping, to `live` */
    u64 weight;
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
BPF_ARRAY(settings, u32, SETTINGS);
BPF_ARRAY(classes, struct size_class, CLASSES);
BPF_PERCPU_ARRAY(closed, s64, 1); /* entries of `live` that do not stand */
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
    u32 which = SETTING_BOOKING;
    u32 *on = settings.lookup(&which);
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

static __always_inline struct size_class *class_of(u64 as, u64 length) {
    u32 index = hash_with(as, length) & (CLASSES - 1);
    return classes.lookup(&index);
}

static __always_inline void count_closed(s64 more) {
    u32 zero = 0;
    s64 *count = closed.lookup(&zero);
    if (count)
        *count += more;
}

static __always_inline void close_live(struct live *entry, u64 as, u32 tid) {
    struct size_class *class = class_of(as, entry->length);
    if (class)
        __sync_fetch_and_add(&class->bytes, -entry->length);
    if (entry->weight)
        book_freed(as, entry->site, entry->length * entry->weight, entry->weight);
    entry->gone = tid;
    count_closed(1);
}

static __always_inline void evict(struct live *entry, u32 tid, u64 as, u64 t_ns, u64 addr) {
    tell(EVENT_EVICT, tid, as, t_ns, addr, addr + entry->length, entry->site, entry->born_ns, entry->weight, 0);
}

/* [addr, addr + length) is about to go: whether it was one whole mapping, closed here, or told to user space. What was
 * born before the last removal that was told may have been cut by that, and another may stand in the hole: that is for
 * user space too. The class of such a mapping keeps its bytes: what goes by pieces may also stay by pieces, and
 * deserves its walks. */
static __always_inline u64 take(u32 tid, struct target *target, u64 t_ns, u64 addr, u64 length) {
    struct live_key key = {.as = target->as, .addr = addr};
    struct live *found = live.lookup(&key);
    if (found && !found->gone && found->length == length && found->born_ns > target->cut_ns) {
        close_live(found, key.as, tid);
        return PENDING_LIVE;
    }
    if (t_ns == 0)
        t_ns = bpf_ktime_get_ns();
    if (found) {
        if (!found->gone) {
            evict(found, tid, key.as, t_ns, addr);
            count_closed(1);
        }
        found->gone = GONE_FOR_GOOD;
    }
    if (t_ns > target->cut_ns)
        target->cut_ns = t_ns;
    tell(EVENT_UNMAP, tid, key.as, t_ns, addr, addr + length, 0, 0, 0, 0);
    return PENDING_EVENT;
}

/* The call failed: what its entry took stands again. */
static __always_inline void give_back(u32 tid, u64 as, u64 addr, u64 length) {
    struct live_key key = {.as = as, .addr = addr};
    struct live *found = live.lookup(&key);
    if (found && found->gone == tid && found->length == length) {
        struct size_class *class = class_of(as, length);
        if (class)
            __sync_fetch_and_add(&class->bytes, length);
        if (found->weight)
            book_freed(as, found->site, -(length * found->weight), -(u64)found->weight);
        found->gone = 0;
        count_closed(-1);
        return;
    }
    tell(EVENT_UNDO, tid, as, bpf_ktime_get_ns(), addr, addr + length, 0, 0, 0, 0);
}

/* The least that stood in a class in a window, at the start of each: where it passes all that it ever was, the class
 * grows, and each of its mappings is walked for a while; for twice as long at each new record, until it is for good. */
static __always_inline void begin_window(struct size_class *class, u64 now, u64 free) {
    s64 low = class->low;
    u64 windows = 1 + (now - class->window_ends_ns) / WINDOW_NS;
    if (windows > SAVED_WINDOWS)
        windows = SAVED_WINDOWS;
    class->free += free * windows;
    if (class->free > free * SAVED_WINDOWS)
        class->free = free * SAVED_WINDOWS;
    if (now - class->window_ends_ns > QUIET_NS) /* it was idle, or is new */
        class->hold_ns = FIRST_HOLD_NS;
    else if (low > class->record) {
        class->walk_until_ns = now + class->hold_ns;
        if (class->hold_ns < (1ULL << 62))
            class->hold_ns *= 2;
    }
    if (low > class->record)
        class->record = low;
    class->low = class->bytes;
    class->window_ends_ns = now + WINDOW_NS;
}

static __always_inline void count_class(u64 as, u64 length) {
    struct size_class *class = class_of(as, length);
    if (class)
        __sync_fetch_and_add(&class->bytes, length);
}

/* The weight of a new mapping's stack; 0: it is not walked. All of what grows or is rare are walked; of a class that is
 * busy and whose mappings go as they come, some in each window and then a few by lot, each of which stands for many.
 * The lot does not look at the mapping: so the sums of a site's weights are unbiased. */
static __always_inline u32 deserves_walk(u64 as, u64 length, u64 now, int is_booking) {
    struct size_class *class = class_of(as, length);
    u32 free = SETTING_FREE, rarity = SETTING_RARITY;
    u32 *free_walks = settings.lookup(&free), *one_of = settings.lookup(&rarity);
    if (!class || !free_walks || !one_of)
        return 1;
    if (class->bytes < class->low)
        class->low = class->bytes;
    if (now >= class->window_ends_ns)
        begin_window(class, now, *free_walks);
    if (is_booking)
        __sync_fetch_and_add(&class->bytes, length);
    if (now < class->walk_until_ns)
        return 1;
    if (class->free) {
        class->free -= 1;
        return 1;
    }
    if ((bpf_get_prandom_u32() & (*one_of - 1)) == 0)
        return *one_of;
    return 0;
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

/* A whole new mapping, into `live`. */
static __always_inline void open_live(u32 tid, u64 as, u64 addr, u64 length, u64 id, u64 born_ns, u32 weight) {
    struct live_key at = {.as = as, .addr = addr};
    struct live *before = live.lookup(&at);
    if (before) {
        if (before->gone)
            count_closed(-1);
        else /* what stood there was cut, and user space has not yet taken it over */
            evict(before, tid, as, born_ns, addr);
        before->length = length;
        before->site = id;
        before->born_ns = born_ns;
        before->weight = weight;
        before->gone = 0;
        return;
    }
    struct live fresh = {.length = length, .site = id, .born_ns = born_ns, .weight = weight};
    if (live.update(&at, &fresh) == 0)
        return;
    lose(LOSS_LIVE_FULL);
    if (weight)
        book_freed(as, id, length * weight, weight);
}

static __always_inline void book(struct scratch *scratch, u64 id) {
    struct request *request = &scratch->request;
    u32 tid = scratch->out.head.tid;
    if (request->event)
        tell(request->event, tid, request->as, request->t_ns, request->addr, request->addr + request->length, id,
             request->t_ns, request->old, request->old_length);
    else
        open_live(tid, request->as, request->addr, request->length, id, request->t_ns, request->weight);
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
    if (request->event != EVENT_REMAP && request->event != EVENT_ATTACH) { /* whose sizes user space finds */
        __sync_fetch_and_add(&site->allocated_bytes, request->length * request->weight);
        __sync_fetch_and_add(&site->allocated_count, request->weight);
    }
    site->last_ns = request->t_ns;
    book(scratch, key.site);
    return 0;
}

/* What the user's registers held at the system call, of those that carry its arguments: struct pt_regs from r10 on. */
struct arguments {
    u64 r10, r9, r8, ax, cx, dx, si, di;
};

static __always_inline void read_arguments(struct arguments *out) {
    struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
    bpf_probe_read_kernel(out, sizeof(*out), (char *)regs + __builtin_offsetof(struct pt_regs, r10));
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
    struct arguments args;
    read_arguments(&args);
    u64 flags = args.r10, as = target->as;
    u64 length = PAGE_UP(args.si);
    if (flags & MAP_HUGETLB) {
        u64 shift = (flags >> 26) & 63;
        u64 huge = 1ULL << (shift ? shift : 21);
        length = (args.si + huge - 1) & ~(huge - 1);
    }
    int booking = is_booking();
    u64 now = bpf_ktime_get_ns();
    if ((flags & MAP_FIXED) && !(flags & MAP_FIXED_NOREPLACE) && booking)
        take((u32)id, target, now - 1, ret, length);
    u32 kind = KIND_MMAP;
    if (!(flags & MAP_ANONYMOUS)) {
        if (args.dx & PROT_EXEC)
            tell(EVENT_CODE, (u32)id, as, now, ret, ret + length, 0, 0, 0, 0);
        if (!TRACK_FILES)
            return 0;
        kind |= KIND_FILE;
    }
    u32 weight = deserves_walk(as, length, now, booking);
    if (weight == 0) {
        target->unwalked += 1;
        if (booking)
            open_live((u32)id, as, ret, length, 0, now, 0);
        return 0;
    }
    struct scratch *scratch = my_scratch();
    if (!scratch)
        return 0;
    if ((flags & 3) != 2) /* MAP_SHARED or MAP_SHARED_VALIDATE */
        kind |= KIND_SHARED;
    read_registers(scratch);
    scratch->request.as = as;
    scratch->request.t_ns = now;
    scratch->request.addr = ret;
    scratch->request.length = length;
    scratch->request.kind = kind;
    scratch->request.event = 0;
    scratch->request.weight = weight;
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
        take((u32)id, target, 0, addr, length);
    return 0;
}

int on_munmap_exit(struct sys_exit *ctx) {
    if (ctx->ret == 0)
        return 0;
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = targets.lookup(&tgid);
    if (!target || !is_booking())
        return 0;
    struct arguments args;
    read_arguments(&args);
    if (removable(args.di, PAGE_UP(args.si)))
        give_back((u32)id, target->as, args.di, PAGE_UP(args.si));
    return 0;
}

int on_mremap_enter(struct sys_enter *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = targets.lookup(&tgid);
    if (!target || !is_booking())
        return 0;
    struct pending mine = {.addr = ctx->args[0], .length = PAGE_UP(ctx->args[1])};
    if (removable(mine.addr, mine.length) && !(ctx->args[3] & MREMAP_DONTUNMAP))
        mine.state = take((u32)id, target, 0, mine.addr, mine.length);
    pending.update(&id, &mine);
    return 0;
}

int on_mremap_exit(struct sys_exit *ctx) {
    u64 ret = ctx->ret;
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = targets.lookup(&tgid);
    struct scratch *scratch = my_scratch();
    if (!target || !scratch || !is_booking())
        return 0;
    struct pending *mine = pending.lookup(&id);
    if (!mine)
        return 0; /* entered before we booked */
    struct pending taken = *mine;
    pending.delete(&id);
    read_registers(scratch);
    u64 old = scratch->regs.di, old_length = PAGE_UP(scratch->regs.si);
    u64 length = PAGE_UP(scratch->regs.dx), flags = scratch->regs.r10;
    if (FAILED(ret)) {
        if (taken.state != PENDING_NONE)
            give_back((u32)id, target->as, old, old_length);
        return 0;
    }
    u64 now = bpf_ktime_get_ns();
    if (flags & MREMAP_FIXED)
        take((u32)id, target, now - 1, ret, length);
    scratch->request.as = target->as;
    scratch->request.t_ns = now;
    scratch->request.addr = ret;
    scratch->request.length = length;
    scratch->request.old = old;
    scratch->request.old_length = old_length;
    scratch->request.kind = KIND_MREMAP;
    scratch->request.event = taken.state == PENDING_EVENT ? EVENT_REMAP : 0;
    scratch->request.weight = 1;
    if (!scratch->request.event)
        count_class(target->as, length);
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
            take((u32)id, target, t_ns, now, before - now);
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
    scratch->request.weight = 1;
    programs.call(ctx, NEXT_WALK);
    return 0;
}

int on_shmat_exit(struct sys_exit *ctx) {
    u64 ret = ctx->ret;
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = targets.lookup(&tgid);
    struct scratch *scratch = my_scratch();
    if (FAILED(ret) || !target || !scratch)
        return 0;
    read_registers(scratch);
    scratch->request.as = target->as;
    scratch->request.t_ns = bpf_ktime_get_ns();
    scratch->request.addr = ret;
    scratch->request.length = 0;
    scratch->request.kind = KIND_SHM | KIND_SHARED;
    scratch->request.event = EVENT_ATTACH;
    scratch->request.weight = 1;
    programs.call(ctx, NEXT_WALK);
    return 0;
}

int on_shmdt_enter(struct sys_enter *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = targets.lookup(&tgid);
    if (target && is_booking()) /* what is in `live` there, if anything, was mapped over it: it stays */
        tell(EVENT_DETACH, (u32)id, target->as, bpf_ktime_get_ns(), ctx->args[0], 0, 0, 0, 0, 0);
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
