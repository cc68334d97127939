// Maps and unmaps PRIME bytes through outer -> middle -> inner, and 4096 bytes through decoy, a few hundred times per
// second, in one thread or, with the argument n, in n more. A line on stdin makes it load a library: "loaded" or "failed".
// With a second argument the process keeps changing its name between "chain" and a byte that is not UTF-8.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PRIME 1299709

static volatile int sink;

__attribute__((noinline)) void *inner(size_t size) {
    void *block = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sink++;
    return block;
}

__attribute__((noinline)) void *middle(size_t size) {
    void *block = inner(size);
    sink++;
    return block;
}

__attribute__((noinline)) void *outer(void) {
    void *block = middle(PRIME);
    sink++;
    return block;
}

__attribute__((noinline)) void *decoy(void) {
    void *block = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sink++;
    return block;
}

static void *work(void *unused) {
    (void)unused;
    for (;;) {
        munmap(outer(), PRIME);
        munmap(decoy(), 4096);
        usleep(3000);
    }
    return NULL;
}

static void *rename_often(void *unused) {
    (void)unused;
    int comm = open("/proc/self/comm", O_WRONLY);
    for (;;) {
        for (int i = 0; i < 2; i++) {
            if (write(comm, i ? "chain" : "\xc3", i ? 5 : 1) < 0)
                return NULL;
            usleep(500);
        }
    }
}

int main(int argc, char **argv) {
    int more = argc > 1 ? atoi(argv[1]) : 0;
    for (int i = 0; i < 1 + more; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, work, NULL);
    }
    if (argc > 2) {
        pthread_t thread;
        pthread_create(&thread, NULL, rename_often, NULL);
    }
    printf("ready\n");
    fflush(stdout);
    char line[256];
    while (fgets(line, sizeof line, stdin)) {
        void *handle = dlopen("libresolv.so.2", RTLD_NOW);
        printf(handle ? "loaded\n" : "failed\n");
        fflush(stdout);
    }
    return 0;
}
