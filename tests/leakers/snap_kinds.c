/* Memory whose resident bytes are easy to miscount, then "ready": snap_kinds FILE (of at least 64 pages).

   Separated by inaccessible pages: 3 GiB of address space of which every 3rd page of 16 MiB in its middle is touched; 1 GiB
   touched at either end; a region that was touched and released; pages that were only read (the zero page); two huge
   pages; a touched region that is inaccessible now; the file privately with 5 pages changed, and shared; memfd, private
   with 3 pages changed and shared; a huge page of a memfd, and buffers of the kernel (perf_event, io_uring, packets),
   if the kernel has them. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/if_packet.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>

#define PAGE 4096UL
#define MIB (1UL << 20)

static char *region(size_t bytes, int flags, int fd)
{
    char *guard = mmap(NULL, bytes + 4 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *start = (char *)(((size_t)guard + 2 * MIB) & ~(2 * MIB - 1));
    int also = fd < 0 ? MAP_ANONYMOUS | MAP_NORESERVE : 0;
    if (mmap(start, bytes, PROT_READ | PROT_WRITE, MAP_FIXED | flags | also, fd, 0) == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    if (fd < 0)
        madvise(start, bytes, MADV_NOHUGEPAGE); /* where they come unasked, too, a touched page is one page */
    return start;
}

static void touch(char *at, size_t bytes, size_t step)
{
    for (size_t offset = 0; offset < bytes; offset += step)
        at[offset] = 1;
}

static long sum_of(const char *at, size_t bytes)
{
    long sum = 0;
    for (size_t offset = 0; offset < bytes; offset += PAGE)
        sum += at[offset];
    return sum;
}

static long buffer(size_t bytes, int fd, off_t offset)
{
    char *at = fd < 0 ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
    return at == MAP_FAILED ? 0 : sum_of(at, bytes);
}

static long buffers_of_the_kernel(void)
{
    struct perf_event_attr event = {.size = sizeof event, .type = PERF_TYPE_SOFTWARE, .sample_period = 1000000};
    struct io_uring_params rings = {0};
    struct tpacket_req ring = {.tp_block_size = 4 * PAGE, .tp_block_nr = 4, .tp_frame_size = 2048, .tp_frame_nr = 32};
    int perf = syscall(SYS_perf_event_open, &event, 0, -1, -1, 0), uring = syscall(SYS_io_uring_setup, 256, &rings);
    int packets = socket(AF_PACKET, SOCK_RAW, 0);
    if (packets >= 0 && setsockopt(packets, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring) < 0)
        packets = -1;
    return buffer(9 * PAGE, perf, 0) + buffer(4 * PAGE, uring, IORING_OFF_SQES) + buffer(16 * PAGE, packets, 0);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    char *sparse = region(3072 * MIB, MAP_PRIVATE, -1), *ends = region(1024 * MIB, MAP_PRIVATE, -1);
    touch(sparse + 1500 * MIB, 16 * MIB, 3 * PAGE);
    touch(ends, 3 * PAGE, PAGE);
    touch(ends + 1024 * MIB - 5 * PAGE, 5 * PAGE, PAGE);
    char *given = region(16 * MIB, MAP_PRIVATE, -1);
    touch(given, 16 * MIB, PAGE);
    madvise(given, 16 * MIB - 9 * PAGE, MADV_DONTNEED);
    long sum = sum_of(region(2 * MIB, MAP_PRIVATE, -1), 2 * MIB);
    char *huge = region(8 * MIB, MAP_PRIVATE, -1);
    madvise(huge, 8 * MIB, MADV_HUGEPAGE);
    huge[0] = huge[4 * MIB] = 1;
    char *closed = region(MIB, MAP_PRIVATE, -1);
    touch(closed, MIB, PAGE);
    mprotect(closed, MIB, PROT_NONE);
    int file = open(argv[1], O_RDWR);
    char *copied = region(64 * PAGE, MAP_PRIVATE, file), *mapped = region(64 * PAGE, MAP_SHARED, file);
    sum += sum_of(copied, 40 * PAGE) + sum_of(mapped, 64 * PAGE);
    touch(copied, 5 * PAGE, PAGE);
    int memory = memfd_create("kinds", 0);
    if (ftruncate(memory, 64 * PAGE))
        return 1;
    touch(region(64 * PAGE, MAP_SHARED, memory), 64 * PAGE, PAGE);
    touch(region(64 * PAGE, MAP_PRIVATE, memory), 3 * PAGE, PAGE);
    int large = memfd_create("large", MFD_HUGETLB);
    if (large >= 0 && !ftruncate(large, 2 * MIB)) {
        char *at = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, large, 0);
        if (at != MAP_FAILED)
            at[0] = 1; /* reserved at the mmap: no page, no mapping */
    }
    sum += buffers_of_the_kernel();
    printf("ready %ld\n", sum);
    fflush(stdout);
    getchar();
    return 0;
}
