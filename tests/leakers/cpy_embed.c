/*
 * A program that embeds CPython (argv[1] is libpython). Executes the commands on stdin and prints "done" after each:
 * "init", "finalize"; "run TEXT" runs a line of Python; "ensure N TEXT" runs it N times in a thread that C started, each
 * time with a new thread state (PyGILState_Ensure).
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void (*initialize)(int);
static int (*finalize)(void);
static int (*run_string)(const char *);
static int (*ensure)(void);
static void (*release)(int);
static void *(*save_thread)(void);
static void (*restore_thread)(void *);
static char text[4096];
static int times;

static void *worker(void *unused) {
    for (int i = 0; i < times; i++) {
        int state = ensure();
        run_string(text);
        release(state);
    }
    return unused;
}

static void *symbol(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found)
        exit(3);
    return found;
}

int main(int count, char **arguments) {
    char line[4096];
    void *library = count > 1 ? dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL) : NULL;
    if (!library)
        return 2;
    initialize = symbol(library, "Py_InitializeEx");
    finalize = symbol(library, "Py_FinalizeEx");
    run_string = symbol(library, "PyRun_SimpleString");
    ensure = symbol(library, "PyGILState_Ensure");
    release = symbol(library, "PyGILState_Release");
    save_thread = symbol(library, "PyEval_SaveThread");
    restore_thread = symbol(library, "PyEval_RestoreThread");
    setbuf(stdout, NULL);
    puts("ready");
    while (fgets(line, sizeof(line), stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (!strcmp(line, "init")) {
            initialize(0);
        } else if (!strcmp(line, "finalize")) {
            finalize();
        } else if (!strncmp(line, "run ", 4)) {
            run_string(line + 4);
        } else if (!strncmp(line, "ensure ", 7)) {
            char *rest;
            pthread_t thread;
            times = strtol(line + 7, &rest, 10);
            strcpy(text, rest + 1);
            void *state = save_thread();
            pthread_create(&thread, NULL, worker, NULL);
            pthread_join(thread, NULL);
            restore_thread(state);
        }
        puts("done");
    }
    return 0;
}
