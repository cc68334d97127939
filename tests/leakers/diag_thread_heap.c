// A worker thread leaks 2,000 bytes 200 times in 100 ms, in an arena of its own. Another one frees what it allocates.
// Prints "ready".
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST (200L << 20)

static char *volatile last;

__attribute__((noinline)) static void keep_block(void)
{
	char *block = malloc(2000);
	memset(block, 1, 2000);
	last = block;
}

static void *keeper(void *unused)
{
	(void)unused;
	for (long held = 0; held < MOST; held += 200 * 2000) {
		for (int i = 0; i < 200; i++)
			keep_block();
		usleep(100000);
	}
	pause();
	return NULL;
}

__attribute__((noinline)) static void use_blocks(void)
{
	char *blocks[100];
	for (int i = 0; i < 100; i++) {
		blocks[i] = malloc(3000);
		memset(blocks[i], 1, 3000);
	}
	usleep(50000);
	for (int i = 0; i < 100; i++)
		free(blocks[i]);
}

static void *user(void *unused)
{
	(void)unused;
	for (;;)
		use_blocks();
	return NULL;
}

int main(void)
{
	pthread_t threads[2];
	pthread_create(&threads[0], NULL, keeper, NULL);
	pthread_create(&threads[1], NULL, user, NULL);
	sleep(1); // both have their arenas
	puts("ready");
	fflush(stdout);
	pause();
}
