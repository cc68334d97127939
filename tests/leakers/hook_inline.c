// Patches the entry of libc's shmdt in its own memory in the way that its argument names, so that calls go to my_shmdt.
// It never calls it. Ways: rel32 (through a trampoline page near libc, as this program is out of its reach), movabs, r11,
// ripjmp, self (a patch half done: jmp to itself), int3 (as by a debugger or uprobe), none.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>

int my_shmdt(const void *address) { return address == NULL; }

static void write_movabs(unsigned char *at, uint64_t target) {  // mov rax, imm64; jmp rax
    memcpy(at, "\x48\xb8", 2);
    memcpy(at + 2, &target, 8);
    memcpy(at + 10, "\xff\xe0", 2);
}

int main(int argc, char **argv) {
    const char *way = argc > 1 ? argv[1] : "none";
    unsigned char *entry = (unsigned char *)(uintptr_t)&shmdt;
    uint64_t target = (uint64_t)(uintptr_t)&my_shmdt;
    unsigned char *page = (unsigned char *)((uintptr_t)entry & ~4095UL);
    mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC);
    if (!strcmp(way, "rel32")) {
        unsigned char *near = MAP_FAILED;
        for (uintptr_t hint = (uintptr_t)page - (64 << 20); near == MAP_FAILED; hint -= 1 << 20)
            near = mmap((void *)hint, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        write_movabs(near, target);
        int32_t distance = (int32_t)(near - (entry + 5));
        entry[0] = 0xe9;
        memcpy(entry + 1, &distance, 4);
    } else if (!strcmp(way, "movabs")) {
        write_movabs(entry, target);
    } else if (!strcmp(way, "r11")) {
        memcpy(entry, "\x49\xbb", 2);
        memcpy(entry + 2, &target, 8);
        memcpy(entry + 10, "\x41\xff\xe3", 3);
    } else if (!strcmp(way, "ripjmp")) {
        memcpy(entry, "\xff\x25\x00\x00\x00\x00", 6);
        memcpy(entry + 6, &target, 8);
    } else if (!strcmp(way, "self")) {
        memcpy(entry, "\xeb\xfe", 2);
    } else if (!strcmp(way, "int3")) {
        entry[0] = 0xcc;
    }
    mprotect(page, 8192, PROT_READ | PROT_EXEC);
    printf("ready\n");
    fflush(stdout);
    pause();
    return 0;
}
