/*
 * Exact figures for the tracer. Prints "ready", then executes one line of stdin at a time and answers "done":
 *
 *   leak N BYTES      N mappings, kept, by the chain leak_8 -> ... -> leak_1 -> mmap
 *   churn N BYTES     N mappings, each unmapped at once
 *   partial N         N mappings of 8 pages by chain; of each the first, the middle two and the last page are unmapped
 *   fixed N           N mappings of 4 pages, the middle two of each replaced by MAP_FIXED
 *   grow N            N mappings of 2 pages, each mremap'ed to 5 (it may move)
 *   failing N         N mappings of one page, kept; and for each an munmap that fails (not aligned)
 *   heap BYTES        sbrk
 *   worker BYTES      a forked child executes the next lines; it grows its heap first
 *   fork N BYTES      a child that leaks, and stays
 *   threads N BYTES   four threads that leak N each, and stay
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define DEEP __attribute__((noinline, noclone))

static volatile int after; /* written after each call, so that none is a tail call */

DEEP char *leak_1(size_t bytes) {
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        abort();
    memset(at, 1, bytes);
    return at;
}
#define LINK(name, inner) \
    DEEP char *name(size_t bytes) { \
        char local[48]; \
        local[bytes % 48] = 1; \
        char *at = inner(bytes); \
        after = local[bytes % 48]; \
        return at; \
    }
LINK(leak_2, leak_1)
LINK(leak_3, leak_2)
LINK(leak_4, leak_3)
LINK(leak_5, leak_4)
LINK(leak_6, leak_5)
LINK(leak_7, leak_6)
LINK(leak_8, leak_7)

DEEP void leak_many(int count, size_t bytes) {
    for (int i = 0; i < count; i++)
        leak_8(bytes);
}

DEEP void churn_many(int count, size_t bytes) {
    for (int i = 0; i < count; i++)
        munmap(leak_8(bytes), bytes);
}

DEEP void partial_many(int count) {
    for (int i = 0; i < count; i++) {
        char *at = leak_8(8 * PAGE);
        munmap(at, PAGE);
        munmap(at + 3 * PAGE, 2 * PAGE);
        munmap(at + 7 * PAGE, PAGE);
    }
}

DEEP char *replace_middle(char *at) {
    char *got = mmap(at + PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    after = got != at;
    return got;
}

DEEP void fixed_many(int count) {
    for (int i = 0; i < count; i++)
        replace_middle(leak_8(4 * PAGE));
}

DEEP void *grow_one(char *at) {
    char *got = mremap(at, 2 * PAGE, 5 * PAGE, MREMAP_MAYMOVE);
    after = got != at;
    return got;
}

DEEP void grow_many(int count) {
    for (int i = 0; i < count; i++)
        if (grow_one(leak_8(2 * PAGE)) == MAP_FAILED)
            abort();
}

DEEP void failing_many(int count) {
    for (int i = 0; i < count; i++) {
        char *at = leak_8(PAGE);
        if (munmap(at + 1, PAGE) == 0)
            abort();
    }
}

DEEP void heap_more(size_t bytes) {
    char *at = sbrk((long)bytes);
    memset(at, 1, bytes);
    after = at != NULL;
}

static int thread_count;
static size_t thread_bytes;
static pthread_barrier_t all_done;

static void *thread_main(void *unused) {
    (void)unused;
    leak_many(thread_count, thread_bytes);
    pthread_barrier_wait(&all_done);
    for (;;)
        pause();
    return NULL;
}

int main(void) {
    char line[256], word[32];
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("ready\n");
    /* read(2) and no stdio buffer on stdin: the program itself must not map anything in between */
    for (;;) {
        size_t length = 0;
        while (length < sizeof(line) - 1) {
            if (read(0, &line[length], 1) != 1)
                return 0;
            if (line[length] == '\n')
                break;
            length++;
        }
        line[length] = 0;
        int count = 0;
        size_t bytes = 0;
        sscanf(line, "%31s %d %zu", word, &count, &bytes);
        if (!strcmp(word, "leak"))
            leak_many(count, bytes);
        else if (!strcmp(word, "churn"))
            churn_many(count, bytes);
        else if (!strcmp(word, "partial"))
            partial_many(count);
        else if (!strcmp(word, "fixed"))
            fixed_many(count);
        else if (!strcmp(word, "grow"))
            grow_many(count);
        else if (!strcmp(word, "failing"))
            failing_many(count);
        else if (!strcmp(word, "heap"))
            heap_more((size_t)count);
        else if (!strcmp(word, "fork")) {
            int done[2];
            if (pipe(done))
                abort();
            int child = fork();
            if (child == 0) {
                leak_many(count, bytes);
                if (write(done[1], "x", 1) != 1)
                    abort();
                for (;;)
                    pause();
            }
            char got;
            if (read(done[0], &got, 1) != 1)
                abort();
            printf("child %d\n", child);
        } else if (!strcmp(word, "worker")) { /* a forked child with a heap of its own goes on in our place */
            int child = fork();
            if (child) {
                waitpid(child, NULL, 0);
                return 0;
            }
            heap_more((size_t)count);
            printf("worker %d\n", getpid());
        } else if (!strcmp(word, "threads")) {
            thread_count = count;
            thread_bytes = bytes;
            pthread_barrier_init(&all_done, NULL, 5);
            for (int i = 0; i < 4; i++) {
                pthread_t thread;
                pthread_create(&thread, NULL, thread_main, NULL);
            }
            pthread_barrier_wait(&all_done);
        } else
            return 2;
        printf("done\n");
    }
}
