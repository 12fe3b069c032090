/* Pages of known content, for the programs of these tests. They know nothing of numerge, but that they wait
 * where it is there, until what they try it on is merged. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

#define FAIL(...)                                                                                  \
    do {                                                                                           \
        fprintf(stderr, "pid %d, %s line %d: ", (int)getpid(), __FILE__, __LINE__);                \
        fprintf(stderr, __VA_ARGS__);                                                              \
        fprintf(stderr, " (%s)\n", strerror(errno));                                               \
        _exit(1);                                                                                  \
    } while (0)

/* Content 0 is zeros. */
static inline uint64_t word(uint64_t content, uint64_t n) {
    return content ? content * 0x9e3779b97f4a7c15 ^ n : 0;
}

static inline void fill(void *page, uint64_t content) {
    for (unsigned n = 0; n < WORDS; n++) ((volatile uint64_t *)page)[n] = word(content, n);
}

/* The first word that is another, or -1. */
static inline int differs(const void *page, uint64_t content) {
    for (unsigned n = 0; n < WORDS; n++)
        if (((const volatile uint64_t *)page)[n] != word(content, n)) return (int)n;
    return -1;
}

static inline void *map_pages(size_t pages) {
    void *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) FAIL("mmap");
    return at;
}

static inline void offer(void *start, size_t pages) {
    /* EINVAL: a kernel without KSM, and nobody in between. */
    if (madvise(start, pages * PAGE, MADV_MERGEABLE) && errno != EINVAL) FAIL("MADV_MERGEABLE");
}

/* Pages of a range of one of the engine's files that are there and private: written to after merging. */
static inline size_t written(uintptr_t page, uintptr_t end) {
    static const uint64_t is_there = (uint64_t)1 << 63, is_file = (uint64_t)1 << 61;
    uint64_t entries[512];
    size_t found = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0) FAIL("/proc/self/pagemap");
    while (page < end) {
        size_t want = end - page < 512 ? end - page : 512;
        if (pread(fd, entries, want * 8, (off_t)page * 8) != (ssize_t)(want * 8)) FAIL("pagemap");
        for (size_t n = 0; n < want; n++) found += (entries[n] & (is_there | is_file)) == is_there;
        page += want;
    }
    close(fd);
    return found;
}

/* Pages of a range that are merged. */
static inline size_t merged(const void *start, size_t pages) {
    FILE *maps = fopen("/proc/self/maps", "re");
    uintptr_t first = (uintptr_t)start / PAGE, last = first + pages;
    char line[512];
    size_t found = 0;
    if (!maps) FAIL("/proc/self/maps");
    while (fgets(line, sizeof line, maps)) {
        uintptr_t from, to;
        if (sscanf(line, "%lx-%lx", &from, &to) != 2 || !strstr(line, "numerge-frames")) continue;
        from = from / PAGE > first ? from / PAGE : first;
        to = to / PAGE < last ? to / PAGE : last;
        if (from < to) found += to - from - written(from, to);
    }
    fclose(maps);
    return found;
}

/* Waits until so many of these pages are merged, where there is who does it. */
static inline void wait_merged(const void *start, size_t pages, size_t wanted) {
    if (!getenv("NUMERGE_SOCKET")) return;
    for (int tries = 0; merged(start, pages) < wanted; tries++) {
        if (tries == 30000) FAIL("%zu of %zu pages merged", merged(start, pages), wanted);
        usleep(1000);
    }
}
