/* Starts 40 threads per second, which end at once. The argument says what becomes of them:
 *
 *   unjoined   joinable and never joined: glibc keeps their stacks for ever
 *   detached   their stacks are reused
 *   batch N    N at once, which are joined only after all have ended; repeated
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile char last;

static void *work(void *unused) {
    char buffer[16384];
    (void)unused;
    memset(buffer, 1, sizeof(buffer));
    last = buffer[sizeof(buffer) / 2];
    return NULL;
}

static pthread_t start_one(int detached) {
    pthread_t thread;
    pthread_attr_t how;
    pthread_attr_init(&how);
    pthread_attr_setdetachstate(&how, detached ? PTHREAD_CREATE_DETACHED : PTHREAD_CREATE_JOINABLE);
    if (pthread_create(&thread, &how, work, NULL))
        abort();
    return thread;
}

static void serve(const char *how, int batch) {
    pthread_t threads[1000];
    for (;;) {
        int count = strcmp(how, "batch") ? 1 : batch;
        for (int i = 0; i < count; i++) {
            threads[i] = start_one(!strcmp(how, "detached"));
            usleep(25000);
        }
        for (int i = 0; !strcmp(how, "batch") && i < count; i++)
            pthread_join(threads[i], NULL);
    }
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("ready\n");
    serve(argv[1], argc > 2 ? atoi(argv[2]) : 0);
}
