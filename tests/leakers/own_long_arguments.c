/* Makes the kernel report that its arguments, or its environment, span 12 GiB: prctl(PR_SET_MM, PR_SET_MM_MAP) (needs
   CAP_SYS_RESOURCE, or a kernel with CONFIG_CHECKPOINT_RESTORE for a process's own map).
   own_long_arguments arguments|environment */
#define _GNU_SOURCE
#include <linux/prctl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv) {
    size_t size = 12ul << 30;
    char *range = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED || argc < 2) return 1;
    memset(range, 'a', 1 << 20);
    struct prctl_mm_map map = {0};
    FILE *stat = fopen("/proc/self/stat", "r");
    char line[4096];
    if (!stat || !fgets(line, sizeof line, stat)) return 1;
    fclose(stat);
    unsigned long field[60] = {0};
    int n = 3;
    char *at = strrchr(line, ')') + 4;
    for (char *word = strtok(at, " "); word; word = strtok(NULL, " ")) sscanf(word, "%lu", &field[++n]);
    map.start_code = field[26], map.end_code = field[27], map.start_stack = field[28];
    map.start_data = field[45], map.end_data = field[46], map.start_brk = field[47];
    map.arg_start = field[48], map.arg_end = field[49], map.env_start = field[50], map.env_end = field[51];
    map.brk = (unsigned long)sbrk(0);
    map.exe_fd = -1;
    if (!strcmp(argv[1], "arguments")) map.arg_start = (unsigned long)range, map.arg_end = (unsigned long)range + size;
    else map.env_start = (unsigned long)range, map.env_end = (unsigned long)range + size;
    if (prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof map, 0)) return perror("prctl"), 2;
    puts("ready");
    fflush(stdout);
    for (;;) pause();
}
