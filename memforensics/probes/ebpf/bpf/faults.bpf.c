/*
 * Which stack touched each page that became resident, last.
 *
 * The start of a fault (exceptions:page_fault_user, page_fault_kernel) has its address. kmem:rss_stat, in the middle
 * of the fault, says whether anything became resident, and how much. A read of untouched memory maps the zero page and
 * changes no counter; one fault brings 2 MiB under transparent huge pages; a fault that only changes rights brings
 * nothing. So the stack is walked at rss_stat. Memory that becomes resident in a system call without a fault
 * (MAP_POPULATE, mlock, MADV_POPULATE_WRITE, a device that pins) is seen there too, and its place is known by the
 * arguments of the call.
 *
 * Walking a stack costs ten times what the rest does. So when there are very many faults, those on pages that are
 * touched again and again are sampled: see `sample_period_of`.
 *
 * Constants by -D, in addition to those of stacks.bpf.h: MAX_PAGES; offsets of fields in tracepoints: FAULT_ADDRESS,
 * FAULT_CODE, RSS_MM_ID, RSS_CURR, RSS_MEMBER, RSS_SIZE; ANON_ORDERS (bit n: one fault may bring 2**n anonymous
 * pages).
 */
#include <uapi/linux/ptrace.h>
#include "unwind.bpf.h"
#if WITH_PYTHON
#include "pyframes.bpf.h"
#endif

#define PAGE_SHIFT_HERE 12

/* Indices of `losses`; LOSSES of faults/programs.py has the words for each. */
#define LOSS_RING_FULL 0
#define LOSS_PAGES_FULL 1
#define LOSS_SITES_FULL 2
#define LOSS_TRUNCATED 3
#define LOSS_UNREADABLE 4
#define LOSS_NO_COPY 5
#define LOSS_TARGETS_FULL 6
#define LOSS_UNPLACED 7 /* pages, not events */
#define LOSSES 8

/* enum of include/linux/mm_types_task.h */
#define MM_FILEPAGES 0
#define MM_ANONPAGES 1
#define MM_SWAPENTS 2
#define MM_SHMEMPAGES 3
#define MEMBERS 4

/* struct stack_event.kind */
#define KIND_FAULT 5

#define WINDOW_NS 16000000ULL
#define BURST 16384
#define RETOUCH_FACTOR 8 /* pages that were touched before are sampled so many times less */

#define FAULT_PRESENT 1 /* of the error code of x86: the page was present, and the access was not allowed */
#define NO_SYSTEM_CALL (-1L)

#define PROT_EXEC 4
#define MAP_ANONYMOUS 0x20

/* Walks that are not sampled, saved up to BURST */
struct allowance {
    s64 left;
    u64 filled_ns;
};

struct target {
    u64 as;
    u64 parent;         /* tgid it was forked from, with the same program in it; 0: none, or it has exec'ed */
    s64 pages[MEMBERS]; /* resident, by the last rss_stat, by member; -1: not known */
    u64 stacks_skipped; /* faults whose stack was not walked */
    struct allowance fresh, retouch; /* for pages touched for the first time, and again */
    u32 mm_id, unused;  /* of these pages; 0: not known yet */
};

/* The current or last fault of a thread */
struct fault {
    u64 id; /* of the thread */
    u64 address;
    u32 code;
    u32 open;    /* 0: the pages it brought are recorded */
    s64 syscall; /* during which the kernel faulted; NO_SYSTEM_CALL: user code did */
};

struct page_key {
    u64 as;
    u64 page; /* the first of several, or the one that was touched */
};

struct page {
    u64 site;
    u64 t_ns;
    u32 count;
    u32 member; /* and WINDOW_* */
    u64 window; /* bytes after `page` among which these pages are; 0: by member and count */
};

struct site {
    u64 bytes, faults, first_ns, last_ns;
    u64 weight; /* how many faults each one counts for */
};

struct request {
    u64 as, t_ns;
    u64 address, pages, window;
    u32 member;
    u32 by_mmap; /* the place is known when the call returns */
    u64 weight;
};

/* Pages that an mmap (MAP_POPULATE) brings, until its return gives the address */
struct populated {
    u64 site, pages, t_ns;
    u32 member, unused;
};

#include "stacks.bpf.h"

#define FAULTS 16384

BPF_TABLE("lru_hash", u32, u32, mms, 16384); /* the tgid that owns the pages of an mm */
BPF_ARRAY(faults, struct fault, FAULTS);     /* by tid; threads that share an entry rarely fault at the same time */
BPF_TABLE("lru_hash", u64, struct populated, populating, 16384);
BPF_F_TABLE("hash", struct page_key, struct page, pages, MAX_PAGES, HASH_FLAGS);

#define FIELD(type, offset) (*(type *)((char *)ctx + (offset)))

static __always_inline struct fault *fault_of(u64 id) {
    u32 at = id & (FAULTS - 1);
    return faults.lookup(&at);
}

static __always_inline void note_fault(u64 id, u64 address, u32 code, s64 syscall) {
    struct fault *mine = fault_of(id);
    if (!mine)
        return;
    mine->id = id;
    mine->address = address;
    mine->code = code;
    mine->syscall = syscall;
    mine->open = 1;
}

int on_user_fault(void *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    if (!target_of(tgid))
        return 0;
    begin_run(1);
    note_fault(id, FIELD(u64, FAULT_ADDRESS), FIELD(u64, FAULT_CODE), NO_SYSTEM_CALL);
    end_run();
    return 0;
}

int on_kernel_fault(void *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    if (!target_of(tgid))
        return 0;
    begin_run(1);
    s64 syscall = user_register(user_registers(), SYSCALL_NUMBER);
    note_fault(id, FIELD(u64, FAULT_ADDRESS), FIELD(u64, FAULT_CODE), syscall);
    end_run();
    return 0;
}

/* The process that owns the pages of an mm: the current one, unless it borrows the mm (vfork). 0: none, or not known.
 * */
static __always_inline struct target *owner_of(u32 mm_id, struct target *current, u32 tgid) {
    u32 *known;
    if (current && current->mm_id == mm_id)
        return current;
    known = mms.lookup(&mm_id);
    if (known) {
        struct target *other = target_of(*known);
        if (other && other->mm_id == mm_id)
            return other;
    }
    if (!current)
        return 0;
    if (current->mm_id) /* exec: a new mm */
        current->pages[0] = current->pages[1] = current->pages[2] = current->pages[3] = -1;
    current->mm_id = mm_id;
    mms.update(&mm_id, &tgid);
    return current;
}

/* The change of a counter, of which the kernel gives the value. 0 when the value before is not known. Threads that add
 * at the same time may each see the pages of the other in it: see pages_of(). */
static __always_inline s64 change_of(struct target *owner, u32 member, s64 now) {
    s64 before = __sync_lock_test_and_set(&owner->pages[member & (MEMBERS - 1)], now);
    return before < 0 ? 0 : now - before;
}

/* How many pages a fault brought. A fault on anonymous memory brings one page, or a folio of an enabled order. Other
 * threads account for any other difference of the counter. */
static __always_inline u64 pages_of(u32 member, s64 change) {
    u32 order;
    if (member != MM_ANONPAGES)
        return change > 0 ? change : 1;
#pragma unroll
    for (order = 10; order > 1; order--) {
        if ((ANON_ORDERS >> order & 1) && change >= (1L << order))
            return 1UL << order;
    }
    return 1;
}

static __always_inline void put_pages(u64 as, u64 page, struct page *value) {
    struct page_key key = {.as = as, .page = page};
    if (pages.update(&key, value) != 0)
        count_losses(LOSS_PAGES_FULL, value->count);
}

/* A system call brings its pages one by one; they share an entry. `before`: the entry at this address. */
static __always_inline void place(struct request *request, struct page *before, u64 site, u64 id) {
    struct page fresh = {
        .site = site, .t_ns = request->t_ns, .count = request->pages, .member = request->member, .window = request->window};
    if (request->by_mmap) {
        struct populated *mine = populating.lookup(&id);
        if (mine && mine->site == site && mine->member == request->member) {
            mine->pages += request->pages;
            mine->t_ns = request->t_ns;
        } else {
            struct populated first = {
                .site = site, .pages = request->pages, .t_ns = request->t_ns, .member = request->member};
            if (mine)
                count_losses(LOSS_UNPLACED, mine->pages);
            populating.update(&id, &first);
        }
        return;
    }
    if (request->address == 0) {
        count_losses(LOSS_UNPLACED, request->pages);
        return;
    }
    if (!before) {
        put_pages(request->as, request->address, &fresh);
        return;
    }
    if (request->window && before->site == site && before->window == request->window &&
        before->member == request->member)
        fresh.count += before->count;
    *before = fresh; /* cheaper than an update */
}

static __always_inline int allowed(struct allowance *mine, u32 in_a_window) {
    u64 now = coarse_now(), windows = (now - mine->filled_ns) / WINDOW_NS;
    if (now > mine->filled_ns && windows) {
        mine->left = windows < BURST && mine->left + windows * in_a_window < BURST ? mine->left + windows * in_a_window : BURST;
        mine->filled_ns = now;
    }
    if (mine->left <= 0)
        return 0;
    __sync_fetch_and_add(&mine->left, -1);
    return 1;
}

/* The sample period of a fault. A process grows mostly by pages that it never touched before. When there are many
 * faults, most of them are on pages that it touches again and again, at the same addresses. Before recording starts
 * nothing is known of a page. */
static __always_inline u32 sample_period_of(struct settings *settings, struct target *target, struct page *before) {
    int is_retouch = before || !settings->recording;
    u32 budget = is_retouch ? settings->window_budget / RETOUCH_FACTOR : settings->window_budget;
    if (!settings->window_budget || allowed(is_retouch ? &target->retouch : &target->fresh, budget))
        return settings->byte_sample_period;
    return is_retouch ? settings->sample_period : settings->sample_period / RETOUCH_FACTOR;
}

static __always_inline void note_pages(void *ctx, u64 id, struct target *target) {
    u32 member = FIELD(u32, RSS_MEMBER), mm_id = FIELD(u32, RSS_MM_ID), is_current = FIELD(u32, RSS_CURR);
    u32 tgid = id >> 32;
    struct target *owner;
    struct scratch *scratch;
    struct request *request;
    struct fault *mine;
    struct settings *settings;
    struct page *before;
    void *user;
    s64 change, syscall;

    if (member >= MEMBERS || (!target && is_current))
        return;
    owner = owner_of(mm_id, is_current ? target : 0, tgid);
    if (!owner)
        return;
    change = change_of(owner, member, FIELD(s64, RSS_SIZE) >> PAGE_SHIFT_HERE);
    if (!target || !is_current || member == MM_SWAPENTS)
        return; /* reclaim, khugepaged, a fork that fills its child: only the counter is kept */
    scratch = my_scratch();
    settings = my_settings();
    if (!scratch || !settings)
        return;
    user = user_registers();
    syscall = user_register(user, SYSCALL_NUMBER);
    request = &scratch->request;
    request->by_mmap = 0;
    request->window = 0;
    mine = fault_of(id);
    if (mine && mine->id == id && mine->open && mine->syscall == syscall) {
        /* a private copy replaces a page of a file */
        if (member != MM_ANONPAGES && (mine->code & FAULT_PRESENT))
            return;
        if (change > 0)
            mine->open = 0; /* else reclaim may have come first */
        request->pages = pages_of(member, change);
        request->address = mine->address;
        if (member == MM_ANONPAGES)
            request->address &= ~((request->pages << PAGE_SHIFT_HERE) - 1);
    } else {
        if (change > 0 && mine && mine->id && mine->id != id && syscall == NO_SYSTEM_CALL)
            count_losses(LOSS_UNPLACED, change); /* another thread overwrote the entry */
        if (change <= 0 || syscall == NO_SYSTEM_CALL || syscall == NR_MUNMAP)
            return;
        request->pages = change;
        request->address = 0;
        if (syscall == NR_MMAP) {
            request->by_mmap = 1;
        } else if (syscall == NR_MADVISE || syscall == NR_MLOCK || syscall == NR_MLOCK2) {
            u64 start = user_register(user, ARGUMENT_1);
            request->address = start;
            request->window = (user_register(user, ARGUMENT_2) + (start & 4095) + 4095) & ~4095ULL;
        }
    }
    request->address &= ~4095ULL;
    request->as = target->as;
    request->t_ns = bpf_ktime_get_ns();
    request->member = member;
    struct page_key key = {.as = request->as, .page = request->address};
    before = pages.lookup(&key);
    u32 period = period_for(sample_period_of(settings, target, before), request->pages << PAGE_SHIFT_HERE);
    request->weight = sample_weight(period);
    if (request->weight) {
        read_registers(scratch);
        time_walk(request->t_ns);
        programs.call(ctx, NEXT_WALK);
    } else if (settings->recording) {
        target->stacks_skipped += 1;
        place(request, before, 0, id); /* so that no other site claims these pages */
    }
}

int on_rss(void *ctx) {
    u64 id = current_id();
    struct target *target = target_of(id >> 32);
    if (target)
        begin_run(1);
    note_pages(ctx, id, target);
    if (target)
        end_run();
    return 0;
}

static __always_inline void record_stack(void *ctx) {
    struct scratch *scratch = my_scratch();
    if (!scratch)
        return;
    struct request *request = &scratch->request;
    u32 kind = KIND_FAULT;
    if (request->member == MM_FILEPAGES)
        kind |= KIND_FILE;
    else if (request->member == MM_SHMEMPAGES)
        kind |= KIND_SHARED;
    if (needs_stack_copy(scratch, kind, request->weight)) /* pages have the weight of their site */
        programs.call(ctx, NEXT_MISS);
    if (!is_recording())
        return;
    struct site *site = get_or_create_site(scratch);
    if (!site)
        return;
    site->weight = request->weight;
    __sync_fetch_and_add(&site->bytes, (request->pages << PAGE_SHIFT_HERE) * request->weight);
    __sync_fetch_and_add(&site->faults, request->weight);
    site->last_ns = request->t_ns;
    struct page_key key = {.as = request->as, .page = request->address};
    place(request, pages.lookup(&key), scratch->out.site, current_id());
}

int on_record(void *ctx) {
    record_stack(ctx);
    end_run();
    return 0;
}

int on_mmap_exit(struct sys_exit *ctx) {
    u64 id = current_id();
    u32 tgid = id >> 32;
    struct target *target = target_of(tgid);
    if (!target)
        return 0;
    u64 start = ctx->ret;
    int failed = start >= (u64)-4095L;
    void *user = user_registers(); /* they still hold the arguments */
    if (!failed && (user_register(user, ARGUMENT_3) & PROT_EXEC) && !(user_register(user, ARGUMENT_4) & MAP_ANONYMOUS))
        emit_event(EVENT_CODE, (u32)id, target->as, bpf_ktime_get_ns(), start,
             (start + user_register(user, ARGUMENT_2) + 4095) & ~4095ULL, 0, 0, 0, 0);
    struct populated *mine = populating.lookup(&id);
    if (!mine)
        return 0;
    struct page fresh = {.site = mine->site, .t_ns = mine->t_ns, .count = mine->pages, .member = mine->member};
    populating.delete(&id);
    if (failed) {
        count_losses(LOSS_UNPLACED, fresh.count);
        return 0;
    }
    fresh.window = (u64)fresh.count << PAGE_SHIFT_HERE;
    put_pages(target->as, start, &fresh);
    return 0;
}

static __always_inline void forked(struct target *child, struct target *parent) {
    child->pages[0] = child->pages[1] = child->pages[2] = child->pages[3] = -1;
}

static __always_inline void execed(struct target *target) {
}

static __always_inline void thread_left(u64 id) {
    struct target *target = target_of(id >> 32);
    if (target && (u32)id == id >> 32)
        target->mm_id = 0; /* the next process may get it */
    populating.delete(&id);
}
