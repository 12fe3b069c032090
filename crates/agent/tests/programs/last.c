/*
 * Links the agent, and ends with its last thread, long after its first.
 * usage: last SOCKET
 */
#define _GNU_SOURCE
#include <numerge.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static pthread_t first;

static void end(void) {
    puts("fine");
}

static void *live_on(void *nothing) {
    (void)nothing;
    if (pthread_join(first, NULL) != 0)
        abort();
    usleep(100000);
    return NULL;
}

int main(int argc, char **argv) {
    enum { BYTES = 1 << 20 };
    struct numerge_status found = {0};
    pthread_t other;
    void *memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (argc != 2 || numerge_connect(argv[1], NULL) != 0 || numerge_register(memory, BYTES) != 0)
        abort();
    while (found.pages_registered == 0) {
        if (numerge_status(&found, sizeof found) != 0)
            abort();
        usleep(1000);
    }
    atexit(end);
    first = pthread_self();
    if (pthread_create(&other, NULL, live_on, NULL) != 0)
        abort();
    numerge_keep_until_last();
    pthread_exit(NULL);
}
