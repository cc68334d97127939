// Changes its own GOT slot of munmap (to my_munmap) or of malloc (to anonymous memory), as its argument says: munmap,
// malloc, none. It first calls both through the slots, so that lazy slots are bound.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int my_munmap(void *address, size_t size) { return address == NULL && size == 0; }

static void set_slot(void **slot, void *value) {
    mprotect((void *)((uintptr_t)slot & ~4095UL), 4096, PROT_READ | PROT_WRITE);
    *slot = value;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "none";
    void *block = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(block, 4096);
    free(malloc(100));
    void **munmap_slot, **malloc_slot;
    __asm__("leaq munmap@GOTPCREL(%%rip), %0" : "=r"(munmap_slot));
    __asm__("leaq malloc@GOTPCREL(%%rip), %0" : "=r"(malloc_slot));
    if (!strcmp(what, "munmap")) set_slot(munmap_slot, (void *)(uintptr_t)&my_munmap);
    if (!strcmp(what, "malloc")) {
        void *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(code, 0x90, 4096);
        set_slot(malloc_slot, code);
    }
    char line[] = "ready\n";
    if (write(1, line, sizeof line - 1) < 0) return 1;
    pause();
    return 0;
}
