// What the client programs of the tests share. They know nothing of numerge but where it shows: with an
// engine (NUMERGE_SOCKET) they wait until their memory is merged, and go on as they would without.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define CHECK(what)                                                                                \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            printf("line %d: %s: errno %d\n", __LINE__, #what, errno);                             \
            fflush(stdout);                                                                        \
            _exit(3);                                                                              \
        }                                                                                          \
    } while (0)

static inline uint64_t mixed(uint64_t content, uint64_t n) {
    return content ? content * 0x9E3779B97F4A7C15UL ^ n : 0;
}

static inline void fill(unsigned char *at, uint64_t content) {
    for (uint64_t n = 0; n < PAGE / 8; n++)
        ((volatile uint64_t *)at)[n] = mixed(content, n);
}

static inline int holds(const unsigned char *at, uint64_t content) {
    for (uint64_t n = 0; n < PAGE / 8; n++)
        if (((const volatile uint64_t *)at)[n] != mixed(content, n))
            return 0;
    return 1;
}

// Pages of a range that are in mappings of frames, or an engine's files at all.
static inline size_t in_frames(const void *start, size_t len) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    size_t pages = 0;
    uintptr_t from = (uintptr_t)start, to = from + len;
    CHECK(maps);
    while (fgets(line, sizeof line, maps)) {
        uintptr_t a, b;
        if (sscanf(line, "%lx-%lx", &a, &b) == 2 && strstr(line, "numerge-frames") && a < to && b > from)
            pages += ((b < to ? b : to) - (a > from ? a : from)) / PAGE;
    }
    fclose(maps);
    return pages;
}

// Waits until all of a range is merged, if there is an engine.
static inline void wait_merged(const void *start, size_t len) {
    if (!getenv("NUMERGE_SOCKET"))
        return;
    for (int tries = 0; tries < 2000; tries++) {
        if (in_frames(start, len) == len / PAGE)
            return;
        // With many mappings a look takes long.
        usleep(tries < 200 ? 1000 : 20000);
    }
    printf("not merged: %zu of %zu pages\n", in_frames(start, len), len / PAGE);
    fflush(stdout);
    _exit(4);
}

static inline unsigned char *anonymous(size_t pages) {
    unsigned char *at =
        mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}
