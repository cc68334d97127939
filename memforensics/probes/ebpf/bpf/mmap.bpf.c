/*
 * The ledger of mappings in the kernel: which stack mapped what is still mapped.
 *
 * A removal is recorded when munmap or mremap is *entered*, because a freed address is handed out again before the
 * exit event comes; it is undone when the call fails. An addition is recorded when the call *returns*. A mapping that
 * is removed as it was made, whole, is opened and closed here, in `live`. Whatever is cut, joined or replaced is sent
 * to user space, in the order in which it happened; user space keeps intervals (ledger.py).
 *
 * A closed entry stays in `live`, marked, and is used by the next mapping at its address. That takes two look-ups a
 * mapping; inserting and deleting costs more than all the rest. User space removes those that are not used again.
 *
 * Walking a stack costs several times what the ledger costs. So mappings are divided into size classes, one for each
 * length, and a class that is busy and balanced is sampled: see `walk_weight`.
 *
 * Constants by -D, in addition to those of stacks.bpf.h: MAX_LIVE, TRACK_FILES, KNOWS_FILESYSTEMS, and with that the
 * offsets that lead from a task to the filesystem of an open file (btf.py): TASK_FILES, FILES_FDT, FDT_FD, FILE_INODE,
 * INODE_SB, SB_MAGIC.
 */
#include <uapi/linux/ptrace.h>
#include "unwind.bpf.h"
#if WITH_PYTHON
#include "pyframes.bpf.h"
#endif

#define PAGE_UP(size) (((size) + PAGE_BYTES - 1ULL) & ~(PAGE_BYTES - 1ULL))
#define FAILED(ret) ((u64)(ret) >= (u64)-4095L)

#define PROT_EXEC 4
#define MAP_FIXED 0x10
#define MAP_ANONYMOUS 0x20
#define MAP_FIXED_NOREPLACE 0x100000
#define MAP_HUGETLB 0x40000
#define MREMAP_FIXED 2
#define MREMAP_DONTUNMAP 4

/* struct stack_event.kind: how the memory was obtained */
#define KIND_MMAP 1
#define KIND_MREMAP 2
#define KIND_BRK 3
#define KIND_SHM 4

/* In addition to those of stacks.bpf.h */
#define EVENT_UNMAP 3   /* [a, b) is removed; it is not one whole mapping of `live` */
#define EVENT_EVICT 4   /* a mapping of `live` is handed over to user space: [a, b), site, born */
#define EVENT_UNDO 5    /* the last EVENT_UNMAP of this thread failed */
#define EVENT_REMAP 6   /* mremap moved what the last EVENT_UNMAP of this thread removed: now [a, b), by site */
#define EVENT_BRK 7     /* [a, b) was added to the heap, by site */
#define EVENT_ATTACH 12 /* shmat at a, by site; /proc has its length */
#define EVENT_DETACH 13 /* shmdt of what was attached at a */

/* Indices of `losses`; layout.LOSSES has the words for each. */
#define LOSS_RING_FULL 0
#define LOSS_LIVE_FULL 1
#define LOSS_SITES_FULL 2
#define LOSS_TRUNCATED 3  /* more frames than MAX_NATIVE */
#define LOSS_UNREADABLE 4 /* an unreadable word, or a step that led nowhere */
#define LOSS_NO_COPY 5
#define LOSS_TARGETS_FULL 6
#define LOSSES 7

#define CLASSES 8192
#define WINDOW_NS 16000000ULL
#define SAVED_WINDOWS 512
#define FIRST_HOLD_NS (WINDOW_NS * 64)
#define QUIET_NS (WINDOW_NS * 4096)

/* Times tell whether a mapping was born before or after a removal. They are exact when a removal was sent to user space
 * less than this before. */
#define NEAR_NS 32000000ULL

struct target {
    u64 as;
    u64 brk;
    u64 parent; /* tgid it was forked from, with the same program in it; 0: none, or it has exec'ed */
    u64 stacks_skipped; /* mappings whose stack was not walked */
    u64 last_unmap_ns;  /* of the last removal that was sent to user space */
    u64 releases; /* calls of munmap */
};

struct live_key {
    u64 as, addr;
};

struct live {
    u64 length, site, born_ns;
    u32 weight; /* how many mappings its stack counts for; 0: it was not walked, and `site` is 0 */
    u32 freed_by;   /* 0: it is mapped; else the thread that closed it */
};
#define FREED_FOR_GOOD 0xffffffff /* which cannot be undone */

/* Mappings of one length in one address space. Two classes may share an entry; then both are walked more often. */
struct size_class {
    s64 bytes;  /* that are mapped */
    s64 low;    /* the minimum of `bytes` in this window ... */
    s64 record; /* ... and the maximum of these minima */
    u64 window_ends_ns, walk_until_ns, hold_ns;
    u64 budget_left; /* walks left without sampling */
};

struct site {
    u64 allocated_bytes, allocated_count, freed_bytes, freed_count, first_ns, last_ns;
    u64 squares; /* of the weights of what was allocated */
};

#define PENDING_NONE 0
#define PENDING_LIVE 1  /* closed in `live`: can be reopened */
#define PENDING_EVENT 2 /* sent to user space */

struct pending {
    u64 addr, length, state;
};

/* What the program of a system call hands to the programs that walk the stack and record it. */
struct request {
    u64 as, t_ns;
    u64 addr, length;
    u64 old, old_length;
    u32 kind, event; /* event 0: a whole new mapping, for `live` */
    u64 weight;
};

#include "stacks.bpf.h"

BPF_F_TABLE("hash", struct live_key, struct live, live, MAX_LIVE, HASH_FLAGS);
BPF_TABLE("lru_hash", u64, struct pending, pending, 16384);
BPF_ARRAY(classes, struct size_class, CLASSES);
BPF_PERCPU_ARRAY(closed, s64, 1); /* entries of `live` that are closed */

static __always_inline void count_freed(u64 as, u64 id, u64 bytes, u64 count) {
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
        count_freed(as, entry->site, entry->length * entry->weight, entry->weight);
    entry->freed_by = tid;
    count_closed(1);
}

/* When the event is dropped, the range is lost, and its site's sum gives it up too. */
static __always_inline void evict(struct live *entry, u32 tid, u64 as, u64 t_ns, u64 addr) {
    if (!emit_event(EVENT_EVICT, tid, as, t_ns, addr, addr + entry->length, entry->site, entry->born_ns, entry->weight,
                    0) &&
        entry->weight)
        count_freed(as, entry->site, entry->length * entry->weight, entry->weight);
}

/* [addr, addr + length) is about to be removed. Closes it here when it is one whole mapping, else sends it to user
 * space. A mapping that was born before the last removal that was sent may have been cut by that, and another one may
 * be in the hole; so user space gets it too. Its class keeps its bytes: pieces may stay mapped, so its stacks are
 * worth walking. */
static __always_inline u64 remove_range(u32 tid, struct target *target, u64 t_ns, u64 addr, u64 length) {
    struct live_key key = {.as = target->as, .addr = addr};
    struct live *found = live.lookup(&key);
    if (found && !found->freed_by && found->length == length && found->born_ns > target->last_unmap_ns) {
        close_live(found, key.as, tid);
        return PENDING_LIVE;
    }
    if (t_ns == 0)
        t_ns = bpf_ktime_get_ns();
    if (found) {
        if (!found->freed_by) {
            evict(found, tid, key.as, t_ns, addr);
            count_closed(1);
        }
        found->freed_by = FREED_FOR_GOOD;
    }
    if (t_ns > target->last_unmap_ns)
        target->last_unmap_ns = t_ns;
    emit_event(EVENT_UNMAP, tid, key.as, t_ns, addr, addr + length, 0, 0, 0, 0);
    return PENDING_EVENT;
}

/* The call failed: what its entry removed is mapped again. */
static __always_inline void undo_removal(u32 tid, u64 as, u64 addr, u64 length) {
    struct live_key key = {.as = as, .addr = addr};
    struct live *found = live.lookup(&key);
    if (found && found->freed_by == tid && found->length == length) {
        struct size_class *class = class_of(as, length);
        if (class)
            __sync_fetch_and_add(&class->bytes, length);
        if (found->weight)
            count_freed(as, found->site, -(length * found->weight), -(u64)found->weight);
        found->freed_by = 0;
        count_closed(-1);
        return;
    }
    emit_event(EVENT_UNDO, tid, as, bpf_ktime_get_ns(), addr, addr + length, 0, 0, 0, 0);
}

/* At the start of each window: when the minimum of the last window passes all minima before, the class grows, and each
 * of its mappings is walked for a while. That while doubles with each new record. */
static __always_inline void begin_window(struct size_class *class, u64 now, u64 window_budget) {
    s64 low = class->low;
    u64 windows = 1 + (now - class->window_ends_ns) / WINDOW_NS;
    if (windows > SAVED_WINDOWS)
        windows = SAVED_WINDOWS;
    class->budget_left += window_budget * windows;
    if (class->budget_left > window_budget * SAVED_WINDOWS)
        class->budget_left = window_budget * SAVED_WINDOWS;
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

/* The weight of a new mapping's stack; 0: it is not walked. Stacks of a class that grows or is rare are all walked. Of
 * a busy class whose mappings come and go, some are walked in each window, and then a sample, each with its weight.
 * With `byte_sample_period` a large mapping has a smaller weight than a small one. */
static __always_inline u32 walk_weight(struct settings *settings, u64 as, u64 length, u64 now) {
    struct size_class *class = class_of(as, length);
    if (!class)
        return 1;
    if (class->bytes < class->low)
        class->low = class->bytes;
    if (now >= class->window_ends_ns)
        begin_window(class, now, settings->window_budget);
    if (settings->recording)
        __sync_fetch_and_add(&class->bytes, length);
    u32 size_period = period_for(settings->byte_sample_period, length);
    if (now < class->walk_until_ns)
        return sample_weight(size_period);
    if (class->budget_left) {
        class->budget_left -= 1;
        return sample_weight(size_period);
    }
    return sample_weight(size_period > settings->sample_period ? size_period : settings->sample_period);
}

static __always_inline int removable(u64 addr, u64 length) {
    return (addr & 4095) == 0 && length != 0 && length < (1ULL << 56);
}

/* A whole new mapping, into `live`. */
static __always_inline void open_live(u32 tid, u64 as, u64 addr, u64 length, u64 id, u64 born_ns, u32 weight) {
    struct live_key at = {.as = as, .addr = addr};
    struct live *before = live.lookup(&at);
    if (before) {
        if (before->freed_by)
            count_closed(-1);
        else /* it was cut, and user space has not yet taken it over */
            evict(before, tid, as, born_ns, addr);
        before->length = length;
        before->site = id;
        before->born_ns = born_ns;
        before->weight = weight;
        before->freed_by = 0;
        return;
    }
    struct live fresh = {.length = length, .site = id, .born_ns = born_ns, .weight = weight};
    if (live.update(&at, &fresh) == 0)
        return;
    count_loss(LOSS_LIVE_FULL);
    if (weight)
        count_freed(as, id, length * weight, weight);
}

static __always_inline void record_range(struct scratch *scratch, u64 id) {
    struct request *request = &scratch->request;
    u32 tid = scratch->out.head.tid;
    if (request->event) {
        if (!emit_event(request->event, tid, request->as, request->t_ns, request->addr,
                        request->addr + request->length, id, request->t_ns, request->old, request->old_length) &&
            request->event == EVENT_BRK)
            count_freed(request->as, id, request->length, 1);
    } else
        open_live(tid, request->as, request->addr, request->length, id, request->t_ns, request->weight);
}

static __always_inline void record_stack(void *ctx) {
    struct scratch *scratch = my_scratch();
    if (!scratch)
        return;
    struct request *request = &scratch->request;
    if (needs_stack_copy(scratch, request->kind, 1))
        programs.call(ctx, NEXT_MISS);
    struct site *site = is_recording() ? get_or_create_site(scratch) : 0;
    if (!site)
        return;
    if (request->event != EVENT_REMAP && request->event != EVENT_ATTACH) { /* user space finds the sizes of these */
        __sync_fetch_and_add(&site->allocated_bytes, request->length * request->weight);
        __sync_fetch_and_add(&site->allocated_count, request->weight);
        __sync_fetch_and_add(&site->squares, request->weight * request->weight);
    }
    site->last_ns = request->t_ns;
    record_range(scratch, scratch->out.site);
}

int on_record(void *ctx) {
    record_stack(ctx);
    end_run();
    return 0;
}

#define TMPFS_MAGIC 0x01021994 /* memfd, /dev/shm, any tmpfs: its pages are RssShmem */

/* Whether an open file of this task lives in memory. */
static __always_inline int is_in_memory(u64 fd) {
#if KNOWS_FILESYSTEMS
    char *at = (char *)bpf_get_current_task();
    u64 magic = 0;
    if (bpf_probe_read_kernel(&at, 8, at + TASK_FILES) || bpf_probe_read_kernel(&at, 8, at + FILES_FDT) ||
        bpf_probe_read_kernel(&at, 8, at + FDT_FD) || bpf_probe_read_kernel(&at, 8, at + 8 * (fd & 0x3fffffff)) ||
        !at || bpf_probe_read_kernel(&at, 8, at + FILE_INODE) || bpf_probe_read_kernel(&at, 8, at + INODE_SB) ||
        bpf_probe_read_kernel(&magic, 8, at + SB_MAGIC))
        return 0;
    return magic == TMPFS_MAGIC;
#else
    return 0;
#endif
}

int on_mmap_exit(struct sys_exit *ctx) {
    u64 ret = ctx->ret;
    if (FAILED(ret))
        return 0;
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = target_of(tgid);
    struct settings *settings = my_settings();
    if (!target || !settings)
        return 0;
    begin_run(1);
    void *user = user_registers();
    u64 asked = user_register(user, ARGUMENT_2), flags = user_register(user, ARGUMENT_4), as = target->as;
    u64 length = PAGE_UP(asked);
    if (flags & MAP_HUGETLB) {
        u64 shift = (flags >> 26) & 63;
        u64 huge = 1ULL << (shift ? shift : 21);
        length = (asked + huge - 1) & ~(huge - 1);
    }
    int replaces = (flags & MAP_FIXED) && !(flags & MAP_FIXED_NOREPLACE) && settings->recording;
    u64 now = coarse_now();
    if (replaces || settings->exact || now < target->last_unmap_ns + NEAR_NS)
        now = bpf_ktime_get_ns();
    if (replaces)
        remove_range((u32)id, target, now - 1, ret, length);
    u32 kind = KIND_MMAP;
    if (!(flags & MAP_ANONYMOUS)) {
        if (user_register(user, ARGUMENT_3) & PROT_EXEC)
            emit_event(EVENT_CODE, (u32)id, as, now, ret, ret + length, 0, 0, 0, 0);
        int is_shared = (flags & 3) != 2;
        if (is_shared && is_in_memory(user_register(user, ARGUMENT_5)))
            kind |= KIND_TMPFS;
        else if (!TRACK_FILES)
            return 0;
        else
            kind |= KIND_FILE;
    }
    u32 weight = walk_weight(settings, as, length, now);
    if (weight == 0) {
        if (settings->recording) {
            target->stacks_skipped += 1;
            open_live((u32)id, as, ret, length, 0, now, 0);
        }
        end_run();
        return 0;
    }
    struct scratch *scratch = my_scratch();
    if (!scratch)
        return 0;
    if ((flags & 3) != 2) /* MAP_SHARED or MAP_SHARED_VALIDATE */
        kind |= KIND_SHARED;
    if (user_register(user, ARGUMENT_1)) /* the program chose the address, and may compute it again */
        kind |= KIND_PLACED;
    read_registers(scratch);
    scratch->request.as = as;
    scratch->request.t_ns = bpf_ktime_get_ns();
    scratch->request.addr = ret;
    scratch->request.length = length;
    scratch->request.kind = kind;
    scratch->request.event = 0;
    scratch->request.weight = weight;
    time_walk(scratch->request.t_ns);
    programs.call(ctx, NEXT_WALK);
    return 0;
}

int on_munmap_enter(struct sys_enter *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = target_of(tgid);
    if (!target || !is_recording())
        return 0;
    __sync_fetch_and_add(&target->releases, 1);
    begin_run(2); /* on_munmap_exit does not count itself */
    u64 addr = ctx->args[0], length = PAGE_UP(ctx->args[1]);
    if (removable(addr, length))
        remove_range((u32)id, target, 0, addr, length);
    end_run();
    return 0;
}

int on_munmap_exit(struct sys_exit *ctx) {
    if (ctx->ret == 0)
        return 0;
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = target_of(tgid);
    if (!target || !is_recording())
        return 0;
    void *user = user_registers();
    u64 addr = user_register(user, ARGUMENT_1), length = PAGE_UP(user_register(user, ARGUMENT_2));
    if (removable(addr, length))
        undo_removal((u32)id, target->as, addr, length);
    return 0;
}

int on_mremap_enter(struct sys_enter *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = target_of(tgid);
    if (!target || !is_recording())
        return 0;
    begin_run(1);
    struct pending mine = {.addr = ctx->args[0], .length = PAGE_UP(ctx->args[1])};
    if (removable(mine.addr, mine.length) && !(ctx->args[3] & MREMAP_DONTUNMAP))
        mine.state = remove_range((u32)id, target, 0, mine.addr, mine.length);
    pending.update(&id, &mine);
    end_run();
    return 0;
}

int on_mremap_exit(struct sys_exit *ctx) {
    u64 ret = ctx->ret;
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = target_of(tgid);
    struct scratch *scratch = my_scratch();
    if (!target || !scratch || !is_recording())
        return 0;
    struct pending *mine = pending.lookup(&id);
    if (!mine)
        return 0; /* entered before recording began */
    begin_run(1);
    struct pending taken = *mine;
    pending.delete(&id);
    read_registers(scratch);
    u64 old = scratch->regs.ARGUMENT_1, old_length = PAGE_UP(scratch->regs.ARGUMENT_2);
    u64 length = PAGE_UP(scratch->regs.ARGUMENT_3), flags = scratch->regs.ARGUMENT_4;
    if (FAILED(ret)) {
        if (taken.state != PENDING_NONE)
            undo_removal((u32)id, target->as, old, old_length);
        return 0;
    }
    u64 now = bpf_ktime_get_ns();
    if (flags & MREMAP_FIXED)
        remove_range((u32)id, target, now - 1, ret, length);
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
    time_walk(now);
    programs.call(ctx, NEXT_WALK);
    return 0;
}

int on_brk_exit(struct sys_exit *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = target_of(tgid);
    if (!target)
        return 0;
    begin_run(1);
    u64 now = PAGE_UP((u64)ctx->ret), before = target->brk;
    target->brk = now;
    if (before == 0 || now == before)
        return 0;
    u64 t_ns = bpf_ktime_get_ns();
    if (now < before) {
        if (is_recording())
            remove_range((u32)id, target, t_ns, now, before - now);
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
    time_walk(t_ns);
    programs.call(ctx, NEXT_WALK);
    return 0;
}

int on_shmat_exit(struct sys_exit *ctx) {
    u64 ret = ctx->ret;
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = target_of(tgid);
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
    begin_run(1);
    time_walk(scratch->request.t_ns);
    programs.call(ctx, NEXT_WALK);
    return 0;
}

int on_shmdt_enter(struct sys_enter *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = target_of(tgid);
    if (target && is_recording()) /* what `live` has there was mapped over it and stays */
        emit_event(EVENT_DETACH, (u32)id, target->as, bpf_ktime_get_ns(), ctx->args[0], 0, 0, 0, 0, 0);
    return 0;
}

static __always_inline void forked(struct target *child, struct target *parent) {
    child->brk = parent->brk;
}

static __always_inline void execed(struct target *target) {
    target->brk = 0;
}

static __always_inline void thread_left(u64 id) {
    pending.delete(&id);
}
