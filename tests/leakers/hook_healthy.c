// A healthy program with everything that resembles a hook: variables that hold allocator functions and
// are changed (as in libxml2 or sqlite), addresses of functions taken (in a program at a fixed address they are PLT
// entries), lazily bound slots and, with an argument, this library in a scope of its own. With a second argument it has a
// second set of libraries, libc included, in another namespace.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static void *counted_malloc(size_t size) { return malloc(size + 1); }

void *(*program_malloc)(size_t) = malloc;  // relocated data, not a GOT slot
void (*program_free)(void *) = free;
int (*program_munmap)(void *, size_t) = munmap;

int main(int argc, char **argv) {
    program_malloc = counted_malloc;
    free(program_malloc(5));
    if (argc > 1) {
        void *library = dlopen(argv[1], RTLD_LAZY | RTLD_LOCAL | RTLD_DEEPBIND);
        if (!library) return 1;
        ((void *(*)(void))dlsym(library, "own_use"))();
    }
    if (argc > 2 && !dlmopen(LM_ID_NEWLM, argv[2], RTLD_NOW)) return 1;
    printf("ready\n");
    fflush(stdout);
    pause();
    if (argc > 100) sbrk(1);  // a lazy slot that is never bound
    return 0;
}
