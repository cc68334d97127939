/*
 * The user stack of the current task, walked in the kernel by rules that user space learned. For inclusion in BPF C
 * that bcc compiles; the including file has <uapi/linux/ptrace.h>.
 *
 * A rule leads from a frame at one pc to its caller. User space puts a rule into `rules` for each pc that it passes
 * when it unwinds the stack of a miss (unwind_rule_cache.py). A pc without a rule ends the walk with WALK_MISS.
 */
#ifndef MEMFORENSICS_UNWIND_BPF_H
#define MEMFORENSICS_UNWIND_BPF_H

#ifndef MAX_RULES
#define MAX_RULES 262144
#endif
#define MAX_NATIVE 128 /* a power of two: indices are masked for the verifier */

/* struct rule.base: what the CFA is computed from */
#define BASE_RSP 0
#define BASE_RBP 1
#define BASE_DEREF_RSP 2
#define BASE_DEREF_RBP 3
#define BASE_PLT 4    /* rsp + 8 + (8 if (rip & 15) >= cfa_offset) */
#define BASE_SIGNAL 5 /* the CFA is the word at rsp + cfa_offset; the other offsets count from rsp */
#define BASE_GO 6     /* across the stacks of Go: cross_to_goroutine() */

/* struct rule.flags */
#define RULE_END 1          /* the outermost frame */
#define RULE_RBP_AT_CFA 2   /* the caller's rbp is the word at CFA + rbp_offset (BASE_SIGNAL: rsp + rbp_offset) */
#define RULE_RBP_AT_RBP 4   /* ... at rbp + rbp_offset */
#define RULE_RBP_AT_RSP 8   /* ... at rsp + rbp_offset */
#define RULE_GUESSED 16     /* not from CFI: the caller may be wrong */
#define RULE_RA_IN_LR 32    /* aarch64: a leaf, whose return address is still in x30 */

/* How a walk ended */
#define WALK_COMPLETE 0
#define WALK_MISS 1       /* no rule for a pc */
#define WALK_LIMIT 2      /* more than MAX_NATIVE frames */
#define WALK_UNREADABLE 3 /* a word of the stack could not be read */
#define WALK_STUCK 4      /* the CFA did not move up: a wrong rule or a damaged stack */

/* In the high bits of a recorded pc: user addresses end below 2**57 */
#define PC_RETURN (1ULL << 63)  /* a return address: the call is the byte before it */
#define PC_GUESSED (1ULL << 62) /* found by a guess */

/* rip, rsp and rbp are pc, sp and x29 on aarch64. There the bits above the address may sign it (pointer
 * authentication), and x30 of a signal's frame is two words before the pc: symbols/unwind/machines.py. */
#define AARCH64_ADDRESS ((1ULL << 48) - 1)
#define AARCH64_LR_BEFORE_PC 16

struct rule_key {
    u64 as; /* address space */
    u64 pc; /* where the rule is looked up: a return address less one, else the pc itself */
};

struct rule {
    s32 cfa_offset;
    s32 ra_offset;
    s32 rbp_offset;
    u8 base;
    u8 flags;
    u16 via; /* BASE_GO */
};

/* A walk in progress, and its result. When it ends early, pc, rsp and rbp are those of the last frame. */
struct walk {
    u64 pc, rsp, rbp;
    u64 g; /* r14, which holds the current g of a thread that runs Go */
    u64 hash;
    u32 is_return, guessed;
    u32 count, ended;
    u64 frames[MAX_NATIVE];
#if ON_AARCH64
    u64 lr; /* valid in the leaf and in a frame that a signal interrupted */
#endif
};

BPF_F_TABLE("hash", struct rule_key, struct rule, rules, MAX_RULES, HASH_FLAGS);

static __always_inline u64 hash_with(u64 hash, u64 value) {
    hash = (hash ^ value) * 0x9E3779B97F4A7C15ULL;
    return hash ^ (hash >> 29);
}

static __always_inline int user_word(u64 address, u64 *value) {
    return bpf_probe_read_user(value, sizeof(*value), (void *)address);
}

/* Leads from runtime.systemstack, on the system stack of a thread (that of m.g0), to its caller on the goroutine's
 * stack, by the saved state of the goroutine. The frame pointer must be the one that is saved there; else it is
 * another goroutine. There is no way back, so a walk takes one such step at most. */
static __always_inline int cross_to_goroutine(struct walk *walk, struct rule *rule) {
    u64 g = walk->g, m, g0, curg, sp, bp, pc;
    walk->g = 0;
    if (g == 0 || user_word(g + rule->via, &m) != 0 || user_word(m, &g0) != 0 || g0 != g ||
        user_word(m + (s64)rule->cfa_offset, &curg) != 0 || user_word(curg + (s64)rule->rbp_offset, &bp) != 0 ||
        bp == 0 || bp != walk->rbp || user_word(curg + (s64)rule->ra_offset, &sp) != 0 || user_word(sp, &pc) != 0)
        return WALK_STUCK;
    walk->rsp = sp + 8;
    walk->pc = pc;
    walk->is_return = 1;
    walk->guessed = 0;
    return pc ? -1 : WALK_STUCK;
}

/* One step to the caller. Returns why the walk ends, or -1 when it goes on. */
static __always_inline int walk_step(struct walk *walk, struct rule *rule) {
    u64 cfa, return_address, base, place;
    u32 flags = rule->flags;

    if (flags & RULE_END)
        return WALK_COMPLETE;
    if (rule->base == BASE_GO)
        return cross_to_goroutine(walk, rule);
    base = rule->base == BASE_RBP || rule->base == BASE_DEREF_RBP ? walk->rbp : walk->rsp;
    if (rule->base == BASE_PLT) {
        cfa = base + 8 + ((walk->pc & 15) >= (u64)rule->cfa_offset ? 8 : 0);
    } else {
        cfa = base + (s64)rule->cfa_offset;
        if (rule->base >= BASE_DEREF_RSP && user_word(cfa, &cfa) != 0)
            return WALK_UNREADABLE;
    }
    place = rule->base == BASE_SIGNAL ? walk->rsp : cfa;
#if ON_AARCH64
    if (flags & RULE_RA_IN_LR) {
        if (walk->is_return)
            return WALK_STUCK;
        return_address = walk->lr;
    } else
#endif
    if (user_word(place + (s64)rule->ra_offset, &return_address) != 0)
        return WALK_UNREADABLE;
#if ON_AARCH64
    return_address &= AARCH64_ADDRESS;
    if (rule->base == BASE_SIGNAL &&
        user_word(place + (s64)rule->ra_offset - AARCH64_LR_BEFORE_PC, &walk->lr) != 0)
        return WALK_UNREADABLE;
#endif
    if (flags & (RULE_RBP_AT_CFA | RULE_RBP_AT_RBP | RULE_RBP_AT_RSP)) {
        if (flags & RULE_RBP_AT_RBP)
            place = walk->rbp;
        else if (flags & RULE_RBP_AT_RSP)
            place = walk->rsp;
        if (user_word(place + (s64)rule->rbp_offset, &walk->rbp) != 0)
            return WALK_UNREADABLE;
    }
    if (rule->base == BASE_SIGNAL) {
        walk->is_return = 0;
    } else {
        if (cfa <= walk->rsp && !(ON_AARCH64 && cfa == walk->rsp && flags & RULE_RA_IN_LR))
            return WALK_STUCK;
        walk->is_return = 1;
    }
    walk->rsp = cfa;
    walk->pc = return_address;
    walk->guessed = flags & RULE_GUESSED ? 1 : 0;
    return return_address ? -1 : WALK_COMPLETE;
}

/* Walks from walk->{pc, rsp, rbp, g} of the leaf; fills frames (leaf first), count, hash and ended. */
static __always_inline void walk_stack(struct walk *walk, u64 as) {
    struct rule_key key = {.as = as};
    u64 hash = 0;
    int ended = WALK_LIMIT;
    u32 i;

    walk->is_return = 0;
    walk->guessed = 0;
    for (i = 0; i < MAX_NATIVE; i++) {
        u64 frame = walk->pc;
        if (walk->is_return)
            frame |= PC_RETURN;
        if (walk->guessed)
            frame |= PC_GUESSED;
        walk->frames[i & (MAX_NATIVE - 1)] = frame;
        hash = hash_with(hash, frame);
        key.pc = walk->pc - walk->is_return;
        struct rule *rule = rules.lookup(&key);
        if (!rule) {
            ended = WALK_MISS;
            i++;
            break;
        }
        int how = walk_step(walk, rule);
        if (how >= 0) {
            ended = how;
            i++;
            break;
        }
    }
    walk->count = i;
    walk->ended = ended;
    walk->hash = hash;
}

#endif
