// A shared library with a malloc family of its own, which never frees, and two calls of it. If it is preloaded, it is the
// allocator of the process. If it is opened with RTLD_LOCAL | RTLD_DEEPBIND, only it uses its malloc. In both cases no
// code and no slot is changed.
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static char pool[64 << 20];
static size_t used;

void *memalign(size_t alignment, size_t size) {
    size_t start = (__atomic_fetch_add(&used, size + alignment + 32, __ATOMIC_SEQ_CST) + 16 + alignment) & ~(alignment - 1);
    if (start + size > sizeof pool) return NULL;
    *(size_t *)(pool + start - 16) = size;
    return pool + start;
}
void *malloc(size_t size) { return memalign(16, size); }
void *calloc(size_t count, size_t size) { return malloc(count * size); }
void free(void *block) { (void)block; }
void *realloc(void *block, size_t size) {
    void *fresh = malloc(size);
    if (fresh && block) {
        size_t old = *(size_t *)((char *)block - 16);
        memcpy(fresh, block, old < size ? old : size);
    }
    return fresh;
}
void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void **out, size_t alignment, size_t size) {
    *out = memalign(alignment, size);
    return *out ? 0 : ENOMEM;
}
void *own_use(void) { return realloc(malloc(10), 20); }
