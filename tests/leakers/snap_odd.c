/* Memory of rare kinds, then "ready": snap_odd FOLDER [COUNT]. COUNT: the number of additional small mappings.

   A stack that grows down; memory registered with userfaultfd, some of it write-protected; pages offered to KSM; guard
   pages; pages, small and huge, that were only read; huge pages cut by munmap, mprotect and MADV_DONTNEED; pages shared
   after a fork; pages released lazily (MADV_FREE); a reservation of 8 GiB; locked pages; named anonymous memory; System V memory
   whose segment is removed; a memfd in huge pages; and files with odd names, some of them deleted. What the kernel does
   not have is left out. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <signal.h>

#define PAGE 4096UL
#define MIB (1UL << 20)
#define ANONYMOUS (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

/* Apart from its neighbours, and at a multiple of 2 MiB. */
static char *region(size_t bytes, int flags, int fd)
{
    char *guard = mmap(NULL, bytes + 4 * MIB, PROT_NONE, ANONYMOUS, -1, 0);
    char *start = (char *)(((size_t)guard + 2 * MIB) & ~(2 * MIB - 1));
    if (mmap(start, bytes, PROT_READ | PROT_WRITE, MAP_FIXED | flags, fd, 0) == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    return start;
}

static void touch(char *at, size_t bytes)
{
    for (size_t offset = 0; offset < bytes; offset += PAGE)
        at[offset] = 1;
}

static long sum_of(const char *at, size_t bytes)
{
    long sum = 0;
    for (size_t offset = 0; offset < bytes; offset += PAGE)
        sum += at[offset];
    return sum;
}

static void watched_by_userfaultfd(void)
{
    char *at = region(64 * PAGE, ANONYMOUS, -1);
    touch(at, 16 * PAGE);
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC | 1 /* UFFD_USER_MODE_ONLY */);
    struct uffdio_api api = {.api = UFFD_API};
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
        return;
    struct uffdio_register all = {.range = {(size_t)at, 64 * PAGE}};
    all.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;
    if (ioctl(fd, UFFDIO_REGISTER, &all))
        return;
    struct uffdio_writeprotect some = {.range = {(size_t)at + 8 * PAGE, 32 * PAGE}};
    some.mode = UFFDIO_WRITEPROTECT_MODE_WP;
    ioctl(fd, UFFDIO_WRITEPROTECT, &some);
}

static void cut_huge_pages(void)
{
    char *at = region(8 * MIB, ANONYMOUS, -1);
    madvise(at, 8 * MIB, MADV_HUGEPAGE);
    touch(at, 8 * MIB);
    munmap(at + 2 * MIB - 3 * PAGE, 3 * PAGE);
    madvise(at + 3 * MIB, 5 * PAGE, MADV_DONTNEED);
    mprotect(at + 5 * MIB, MIB, PROT_NONE);
}

static void file_called(const char *folder, const char *name, int is_deleted)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, 9 * PAGE)) {
        perror(path);
        exit(1);
    }
    char *at = region(9 * PAGE, MAP_PRIVATE, fd);
    touch(at, 2 * PAGE);
    touch(region(9 * PAGE, MAP_SHARED, fd), 3 * PAGE);
    close(fd);
    if (is_deleted)
        unlink(path);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    char *stack = region(16 * PAGE, ANONYMOUS | MAP_GROWSDOWN | MAP_STACK, -1);
    touch(stack + 12 * PAGE, 4 * PAGE);
    watched_by_userfaultfd();
    char *same = region(32 * PAGE, ANONYMOUS, -1);
    memset(same, 7, 32 * PAGE);
    madvise(same, 32 * PAGE, MADV_MERGEABLE);
    char *guarded = region(32 * PAGE, ANONYMOUS, -1);
    touch(guarded, 32 * PAGE);
    madvise(guarded + 8 * PAGE, 8 * PAGE, 102 /* MADV_GUARD_INSTALL, Linux 6.13 */);
    cut_huge_pages();
    char *zeros = region(24 * MIB, ANONYMOUS, -1);
    madvise(zeros, 12 * MIB, MADV_NOHUGEPAGE);
    madvise(zeros + 12 * MIB, 12 * MIB, MADV_HUGEPAGE);
    long sum = sum_of(zeros, 24 * MIB);
    char *lazy = region(32 * PAGE, ANONYMOUS, -1);
    touch(lazy, 32 * PAGE);
    madvise(lazy, 16 * PAGE, MADV_FREE);
    char *reserved = mmap(NULL, 8UL << 30, PROT_NONE, ANONYMOUS, -1, 0);
    if (reserved != MAP_FAILED && !mprotect(reserved + (5UL << 30), 8 * PAGE, PROT_READ | PROT_WRITE))
        touch(reserved + (5UL << 30), 5 * PAGE);
    char *locked = region(16 * PAGE, ANONYMOUS, -1);
    mlock(locked, 16 * PAGE);
    char *named = region(16 * PAGE, ANONYMOUS, -1);
    touch(named, 6 * PAGE);
    prctl(0x53564d41 /* PR_SET_VMA */, 0, named, 16 * PAGE, "weights (deleted) 7f00-7f01");
    int segment = shmget(IPC_PRIVATE, 16 * PAGE, IPC_CREAT | 0600);
    char *attached = segment < 0 ? (char *)-1 : shmat(segment, NULL, 0);
    if (attached != (char *)-1)
        touch(attached, 7 * PAGE);
    if (segment >= 0)
        shmctl(segment, IPC_RMID, NULL);
    int memory = memfd_create("huge \\ pages", 0);
    if (memory >= 0 && !ftruncate(memory, 4 * MIB)) {
        char *at = region(4 * MIB, MAP_SHARED, memory);
        madvise(at, 4 * MIB, MADV_HUGEPAGE);
        touch(at, 2 * MIB);
    }
    file_called(argv[1], "two words", 0);
    file_called(argv[1], "new\nline", 0);
    file_called(argv[1], "back\\012slash", 0);
    file_called(argv[1], "gone (deleted)", 0);
    file_called(argv[1], "gone", 1);
    file_called(argv[1], "7f00-7f01 rw-p", 0);
    file_called(argv[1], "caf\xe9 \xff", 1);
    int count = argc > 2 ? atoi(argv[2]) : 0;
    for (int i = 0; i < count; i++) {
        char *one = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | (i % 2 ? PROT_EXEC : 0), ANONYMOUS, -1, 0);
        touch(one, PAGE);
    }
    char *inherited = region(32 * PAGE, ANONYMOUS, -1);
    touch(inherited, 32 * PAGE);
    if (fork() == 0) { /* holds the pages of the parent, of which some are the parent's own again */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
    touch(inherited, 8 * PAGE);
    printf("ready %ld\n", sum);
    fflush(stdout);
    getchar();
    return 0;
}
