/* Memory of every kind, in amounts from the command line, then "ready". A line on stdin adds the same amounts again.
 *
 *   own_layers [anon COUNT BYTES] [merged COUNT BYTES] [malloc COUNT BYTES] [arenas COUNT BYTES] [threads COUNT BYTES]
 *              [memfd COUNT BYTES] [shm COUNT BYTES] [zero COUNT BYTES] [file COUNT BYTES PATH] [ended COUNT 0]
 *              [unjoined COUNT BYTES] [sysv COUNT BYTES] [locked COUNT BYTES] [thp COUNT BYTES]
 *              [thpmemfd COUNT BYTES] [thpfile COUNT BYTES PATH] [swapped COUNT BYTES] [huge COUNT BYTES]
 *              [hugememfd COUNT BYTES] [hugesysv COUNT BYTES]
 *
 * All BYTES are touched. anon: separate private mappings, an inaccessible page on either side; merged: each directly below
 * the one before, so that the kernel makes one mapping of them; malloc: blocks (of their own mapping from 128 KiB on);
 * arenas: threads that stay and malloc BYTES in blocks of 1,000; threads: threads that touch BYTES of their stacks; ended:
 * threads that ended and were joined; unjoined: that touched BYTES of their stacks, ended, and were not. thp...: in
 * transparent huge pages of 2 MiB, where the kernel makes them at once; swapped: written to swap, where there is some;
 * huge...: of hugetlb pages of 2 MiB.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>

static pthread_barrier_t arrived;

static void check(int ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static void touch(char *at, size_t bytes)
{
    for (size_t offset = 0; offset < bytes; offset += 4096)
        at[offset] = 1;
}

static void stay(void)
{
    pthread_barrier_wait(&arrived);
    for (;;)
        pause();
}

static void *fill_arena(void *bytes)
{
    for (size_t left = (size_t)bytes; left >= 1000; left -= 1000)
        memset(malloc(1000), 1, 1000);
    stay();
    return NULL;
}

static void *fill_stack(void *bytes)
{
    size_t size = (size_t)bytes;
    char *room = __builtin_alloca(size + 1);
    for (size_t offset = size; offset > 4096; offset -= 4096) /* downwards, as a stack grows */
        room[offset] = 1;
    __asm__ volatile("" : : "r"(room) : "memory");
    stay();
    return NULL;
}

static void *end_at_once(void *unused)
{
    return unused;
}

static void *touch_and_end(void *bytes)
{
    size_t size = (size_t)bytes;
    volatile char *room = __builtin_alloca(size + 1);
    for (size_t offset = size; offset > 4096; offset -= 4096)
        room[offset] = 1;
    return NULL;
}

static void start_threads(long count, void *(*body)(void *), size_t bytes)
{
    pthread_t thread;
    pthread_barrier_init(&arrived, NULL, count + 1);
    for (long i = 0; i < count; i++)
        check(pthread_create(&thread, NULL, body, (void *)bytes) == 0, "pthread_create");
    pthread_barrier_wait(&arrived);
}

static int entries(const char *path)
{
    int found = -2; /* . and .. */
    DIR *folder = opendir(path);
    check(folder != NULL, path);
    while (readdir(folder))
        found++;
    closedir(folder);
    return found;
}

static char *mapped(size_t bytes, int flags, int fd)
{
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    check(at != MAP_FAILED, "mmap");
    return at;
}

static char *at_huge_page(size_t bytes, int prot, int flags, int fd)
{
    size_t huge = 2 << 20;
    char *room = mmap(NULL, bytes + 2 * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *at = (char *)(((unsigned long)room + huge) & -huge);
    check(mmap(at, bytes, prot, flags | MAP_FIXED, fd, 0) == at, "mmap");
    return at;
}

static void collapse(char *at, size_t bytes)
{
    touch(at, bytes);
    madvise(at, bytes, 25); /* MADV_COLLAPSE, Linux 6.1 */
}

static void read_all(const char *at, size_t bytes)
{
    for (size_t offset = 0; offset < bytes; offset += 4096)
        (void)*(const volatile char *)(at + offset);
}

static void add(const char *kind, long count, size_t bytes, const char *path)
{
    static char *below;
    if (strcmp(kind, "arenas") == 0)
        start_threads(count, fill_arena, bytes);
    else if (strcmp(kind, "threads") == 0)
        start_threads(count, fill_stack, bytes);
    else if (strcmp(kind, "ended") == 0) {
        pthread_t threads[64];
        for (long i = 0; i < count; i++)
            check(pthread_create(&threads[i], NULL, end_at_once, NULL) == 0, "pthread_create");
        for (long i = 0; i < count; i++)
            pthread_join(threads[i], NULL);
    } else if (strcmp(kind, "unjoined") == 0) {
        pthread_t thread;
        for (long i = 0; i < count; i++)
            check(pthread_create(&thread, NULL, touch_and_end, (void *)bytes) == 0, "pthread_create");
        while (entries("/proc/self/task") > 1) /* started last in a test: no other threads stay */
            usleep(1000);
    } else
        for (long i = 0; i < count; i++) {
            if (strcmp(kind, "anon") == 0) {
                char *at = mapped(bytes + 8192, MAP_PRIVATE | MAP_ANONYMOUS, -1);
                check(mprotect(at, 4096, PROT_NONE) == 0, "mprotect");
                check(mprotect(at + 4096 + bytes, 4096, PROT_NONE) == 0, "mprotect");
                touch(at + 4096, bytes);
            } else if (strcmp(kind, "merged") == 0) {
                if (below == NULL) { /* a place of its own, with room below */
                    below = mapped(1UL << 32, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
                    munmap(below, 1UL << 32);
                    below += 1UL << 31;
                }
                below -= bytes;
                char *at = mmap(below, bytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
                check(at == below, "mmap below");
                touch(at, bytes);
            } else if (strcmp(kind, "malloc") == 0)
                memset(malloc(bytes), 1, bytes);
            else if (strcmp(kind, "memfd") == 0) {
                int fd = memfd_create("pool", 0);
                check(fd >= 0 && ftruncate(fd, bytes) == 0, "memfd");
                touch(mapped(bytes, MAP_SHARED, fd), bytes);
            } else if (strcmp(kind, "hugememfd") == 0) {
                int fd = memfd_create("pool", MFD_HUGETLB);
                check(fd >= 0 && ftruncate(fd, bytes) == 0, "memfd");
                touch(mapped(bytes, MAP_SHARED, fd), bytes);
            } else if (strcmp(kind, "huge") == 0)
                touch(mapped(bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1), bytes);
            else if (strcmp(kind, "locked") == 0) {
                char *at = mapped(bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);
                check(mlock(at, bytes) == 0, "mlock");
            } else if (strcmp(kind, "thp") == 0)
                collapse(at_huge_page(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1), bytes);
            else if (strcmp(kind, "thpmemfd") == 0) {
                int fd = memfd_create("pool", 0);
                check(fd >= 0 && ftruncate(fd, bytes) == 0, "memfd");
                collapse(at_huge_page(bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd), bytes);
            } else if (strcmp(kind, "thpfile") == 0) {
                int fd = open(path, O_RDONLY);
                check(fd >= 0, path);
                char *at = at_huge_page(bytes, PROT_READ, MAP_PRIVATE, fd);
                madvise(at, bytes, MADV_HUGEPAGE);
                read_all(at, bytes);
            } else if (strcmp(kind, "swapped") == 0) {
                char *at = mapped(bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);
                touch(at, bytes);
                madvise(at, bytes, 21); /* MADV_PAGEOUT, Linux 5.4 */
            } else if (strcmp(kind, "sysv") == 0 || strcmp(kind, "hugesysv") == 0) {
                int id = shmget(IPC_PRIVATE, bytes, IPC_CREAT | 0600 | (kind[0] == 'h' ? SHM_HUGETLB : 0));
                check(id >= 0, "shmget");
                char *at = shmat(id, NULL, 0);
                shmctl(id, IPC_RMID, NULL);
                check(at != (char *)-1, "shmat");
                touch(at, bytes);
            } else if (strcmp(kind, "shm") == 0) {
                char name[64];
                snprintf(name, sizeof name, "/own_layers.%d.%ld", getpid(), i);
                int fd = shm_open(name, O_CREAT | O_RDWR | O_EXCL, 0600);
                check(fd >= 0 && ftruncate(fd, bytes) == 0, "shm_open");
                touch(mapped(bytes, MAP_SHARED, fd), bytes);
                shm_unlink(name);
            } else if (strcmp(kind, "zero") == 0)
                touch(mapped(bytes, MAP_SHARED | MAP_ANONYMOUS, -1), bytes);
            else if (strcmp(kind, "file") == 0) {
                int fd = open(path, O_RDONLY);
                check(fd >= 0, path);
                char *at = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
                check(at != MAP_FAILED, "mmap");
                read_all(at, bytes);
            } else
                check(0, kind);
        }
}

int main(int argc, char **argv)
{
    char line[64];
    mallopt(M_ARENA_MAX, 64);
    mallopt(M_MMAP_THRESHOLD, 128 * 1024); /* fixed: it would rise with the first free */
    do {
        for (int i = 1; i + 2 < argc; i += 3) {
            int has_path = strstr(argv[i], "file") != NULL;
            add(argv[i], atol(argv[i + 1]), strtoul(argv[i + 2], NULL, 10), has_path ? argv[i + 3] : NULL);
            i += has_path;
        }
        puts("ready");
        fflush(stdout);
    } while (fgets(line, sizeof line, stdin));
    return 0;
}
