/* The in-kernel walk of unwind.bpf.h for arm64, in user space: rules from an array, words from a copy of a stack. */
#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t s32;
typedef int64_t s64;
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#define BPF_F_TABLE(kind, key_type, leaf_type, name, size, flags)  \
    static leaf_type *look_up(key_type *key);                      \
    static struct {                                                \
        leaf_type *(*lookup)(key_type *);                          \
    } name = {look_up}

static int bpf_probe_read_user(void *to, u32 size, const void *from);

#include "include/uapi/linux/ptrace.h"
#include "unwind.bpf.h"

struct entry {
    u64 pc;
    struct rule rule;
};

static struct entry *known;
static u64 known_count;
static const u8 *stack;
static u64 stack_at, stack_bytes;

static struct rule *look_up(struct rule_key *key)
{
    for (u64 i = 0; i < known_count; i++)
        if (known[i].pc == key->pc)
            return &known[i].rule;
    return NULL;
}

static int bpf_probe_read_user(void *to, u32 size, const void *from)
{
    u64 at = (u64)from - stack_at;
    if (at > stack_bytes || size > stack_bytes - at)
        return -14;
    memcpy(to, stack + at, size);
    return 0;
}

/* How it ended; the pcs in `frames`, of which there are *count. */
int walk(struct entry *entries, u64 entry_count, u64 at, const u8 *bytes, u64 size, u64 pc, u64 sp, u64 fp, u64 lr,
         u64 *frames, u32 *count)
{
    struct walk walk = {.pc = pc, .rsp = sp, .rbp = fp, .lr = lr};
    known = entries, known_count = entry_count;
    stack = bytes, stack_at = at, stack_bytes = size;
    walk_stack(&walk, 1);
    *count = walk.count;
    memcpy(frames, walk.frames, walk.count * sizeof(*frames));
    return (int)walk.ended;
}
