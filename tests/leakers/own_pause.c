/* Waits. A test chooses its arguments and environment. */
#include <unistd.h>

int main(void) {
    for (;;) pause();
}
