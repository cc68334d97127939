/* Waits. Its arguments and environment are what a test gave it. */
#include <unistd.h>

int main(void) {
    for (;;) pause();
}
