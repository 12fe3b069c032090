/* Cases of advice, locks and attributes. */
#include "cases.h"
#include <sys/prctl.h>

/* Newer than some C libraries. */
enum { DONTNEED_LOCKED = 24, COLLAPSE = 25, GUARD_INSTALL = 102, GUARD_REMOVE = 103 };
/* That of one of x86_64's huge pages. */
enum { HUGE_BYTES = 2 << 20 };

static void advise(unsigned from, unsigned to, int advice) {
    char what[32];
    snprintf(what, sizeof what, "advice %d", advice);
    told(what, madvise(page(from), (size_t)(to - from) * PAGE, advice));
}

static void dontneed(void) { advise(4, 40, MADV_DONTNEED); }
static void dontneed_all(void) { advise(0, PAGES, MADV_DONTNEED); }

static void dontneed_hole(void) {
    told("munmap", munmap(page(10), PAGE));
    dontneed();
}

static void dontneed_locked(void) {
    told("mlock", mlock(page(10), PAGE));
    dontneed();
    advise(8, 12, DONTNEED_LOCKED);
    show_region();
}

static void free_and_write(void) {
    advise(4, 40, MADV_FREE);
    for (unsigned n = 4; n < 40; n++) fill(page(n), 5);
}

static void remove_content(void) { advise(4, 40, MADV_REMOVE); }

static void cold(void) {
    advise(4, 40, MADV_COLD);
    advise(8, 50, MADV_PAGEOUT);
}

static void populate(void) {
    advise(0, 30, MADV_POPULATE_READ);
    advise(20, PAGES, MADV_POPULATE_WRITE);
    advise(0, 8, MADV_DONTNEED);
    advise(0, PAGES, MADV_POPULATE_WRITE);
    told("munmap", munmap(page(10), PAGE));
    advise(0, PAGES, MADV_POPULATE_READ);
}

static void reading(void) {
    advise(0, 16, MADV_SEQUENTIAL);
    advise(16, 32, MADV_RANDOM);
    advise(0, PAGES, MADV_WILLNEED);
    show_flags("reading", region, PAGES);
    advise(0, PAGES, MADV_NORMAL);
}

static void guards(void) {
    advise(4, 8, GUARD_INSTALL);
    show_region();
    advise(4, 8, GUARD_REMOVE);
}

static void unmergeable(void) { advise(8, 40, MADV_UNMERGEABLE); }

static void bad_advice(void) {
    advise(0, PAGES, 12345);
    told("not a page", madvise(region + 1, PAGE, MADV_DONTNEED));
    told("too far", madvise(region, (size_t)-PAGE, MADV_DONTNEED));
}

static void dontfork(void) {
    advise(3, 9, MADV_DONTFORK);
    show_flags("not forked", region, PAGES);
    in_child(show_region);
    advise(3, 9, MADV_DOFORK);
    in_child(show_region);
}

static void child_wiped(void) {
    show_region();
    show_flags("child", region, PAGES);
    fill(page(4), 7);
    in_child(show_region);
}

static void wipeonfork(void) {
    advise(3, 9, MADV_WIPEONFORK);
    in_child(child_wiped);
    advise(3, 6, MADV_KEEPONFORK);
    in_child(show_region);
}

static void dontdump(void) {
    advise(3, 9, MADV_DONTDUMP);
    show_flags("not dumped", region, PAGES);
    advise(5, 7, MADV_DODUMP);
}

static void hugepage(void) {
    advise(0, 30, MADV_HUGEPAGE);
    advise(20, PAGES, MADV_NOHUGEPAGE);
}

static char *huge(void) {
    char *at = map_pages(3 * HUGE_BYTES / PAGE);
    at += -(uintptr_t)at % HUGE_BYTES;
    for (unsigned n = 0; n < HUGE_BYTES / PAGE; n++) fill(at + (size_t)n * PAGE, 1 + n % 9);
    offer(at, HUGE_BYTES / PAGE);
    wait_merged(at, HUGE_BYTES / PAGE, HUGE_BYTES / PAGE);
    return at;
}

static void collapse(void) {
    char *at;
    /* Some more, for it is seldom that anybody looks at what was merged at this very moment. */
    for (unsigned n = 0; n < 10; n++) {
        at = huge();
        told("collapse", madvise(at, HUGE_BYTES, COLLAPSE));
    }
    show("collapsed", at, HUGE_BYTES / PAGE);
    told("no more", madvise(at, HUGE_BYTES, MADV_NOHUGEPAGE));
    show("small", at, HUGE_BYTES / PAGE);
}

static void lock_some(void) {
    long before = status("VmLck:");
    told("mlock", mlock(page(3) + 7, 5 * PAGE));
    printf("%ld KiB\n", status("VmLck:") - before);
    show_flags("locked", region, PAGES);
    told("again", mlock(page(5), 8 * PAGE));
    told("fewer", munlock(page(4), 2 * PAGE));
    printf("%ld KiB\n", status("VmLck:") - before);
    show_flags("locked", region, PAGES);
    told("mlock2", mlock2(page(30), 8 * PAGE, MLOCK_ONFAULT));
    printf("%ld KiB\n", status("VmLck:") - before);
    told("mlock2", mlock2(page(30), PAGE, 77));
    told("munlock", munlock(region, PAGES * PAGE));
    printf("%ld KiB\n", status("VmLck:") - before);
}

static void lock_all(void) {
    told("mlockall", mlockall(MCL_CURRENT | MCL_ONFAULT));
    show_flags("locked", region, PAGES);
    dontneed();
    told("munlockall", munlockall());
    printf("%ld KiB\n", status("VmLck:"));
}

/* The agent's own mappings are neither filled nor waited for; and merging goes on afterwards. */
static void lock_now(void) {
    told("mlockall", mlockall(MCL_CURRENT));
    show_flags("locked", region, PAGES);
    show_region();
    printf("frames filled: %d\n", status("RssShmem:") > 65536);
    told("munlockall", munlockall());
    printf("%ld KiB\n", status("VmLck:"));
    wait_merged(region, PAGES, PAGES / 2);
    show_region();
    told("now and later", mlockall(MCL_CURRENT | MCL_FUTURE));
    dontneed();
    char *more = map_pages(PAGES);
    for (unsigned n = 0; n < PAGES; n++) fill(more + n * PAGE, 3);
    offer(more, PAGES);
    usleep(100000);
    show_flags("new", more, PAGES);
    told("nonsense", mlockall(64));
    told("munlockall", munlockall());
    printf("frames filled: %d\n", status("RssShmem:") > 65536);
    wait_merged(more, PAGES, PAGES);
    show("new", more, PAGES);
    show_flags("new", more, PAGES);
}

static void lock_future(void) {
    told("mlockall", mlockall(MCL_FUTURE));
    char *more = map_pages(PAGES);
    show_flags("new", more, PAGES);
    for (unsigned n = 0; n < PAGES; n++) fill(more + n * PAGE, 3);
    offer(more, PAGES);
    usleep(100000);
    show("new", more, PAGES);
    show_flags("new", more, PAGES);
    show_flags("old", region, PAGES);
    told("munlockall", munlockall());
}

static void resident(void) {
    unsigned char there[PAGES];
    advise(4, 8, MADV_DONTNEED);
    told("mincore", mincore(region, PAGES * PAGE, there));
    for (unsigned n = 0; n < PAGES; n++) printf("%d", there[n] & 1);
    puts("");
    told("nothing there", mincore(page(PAGES + 1), 8 * PAGE, there));
}

static void sync_some(void) {
    told("async", msync(region, PAGES * PAGE, MS_ASYNC));
    told("sync", msync(region, PAGES * PAGE, MS_SYNC | MS_INVALIDATE));
    told("mlock", mlock(page(3), PAGE));
    told("locked", msync(region, PAGES * PAGE, MS_INVALIDATE));
}

/* Where the agent is, it has this function of libnuma's. */
extern long mbind(void *, unsigned long, int, const unsigned long *, unsigned long, unsigned)
    __attribute__((weak));

static long bind_some(void *start, size_t len, int mode, unsigned flags) {
    unsigned long nodes = 1;
    if (mbind) return mbind(start, len, mode, &nodes, 64, flags);
    return syscall(SYS_mbind, start, len, mode, &nodes, 64, flags);
}

static void show_policy(void) {
    for (unsigned n = 0; n < PAGES; n++) {
        int mode = -1;
        unsigned long nodes = 0;
        if (syscall(SYS_get_mempolicy, &mode, &nodes, 64, page(n), 2)) mode = -errno;
        printf(" %d:%lx", mode, nodes);
    }
    puts("");
}

static void policy(void) {
    enum { BIND = 2, INTERLEAVE = 3, STRICT = 1, MOVE = 2 };
    told("bind", bind_some(page(8), 8 * PAGE, BIND, 0));
    show_policy();
    told("interleave", bind_some(page(20), 8 * PAGE, INTERLEAVE, STRICT | MOVE));
    show_policy();
    unsigned long nodes = 1;
    told("all", syscall(SYS_set_mempolicy, BIND, &nodes, 64));
    show_policy();
}

static void name(void) {
    told("named", prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, page(8), 8 * PAGE, "some name"));
    char line[512];
    size_t bytes = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    while (maps && fgets(line, sizeof line, maps)) {
        uintptr_t from, to;
        if (strstr(line, "[anon:some name]") && sscanf(line, "%lx-%lx", &from, &to) == 2)
            bytes += to - from;
    }
    if (maps) fclose(maps);
    printf("%zu bytes have it\n", bytes);
}

static void of_process(void) {
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    struct iovec ranges[] = {{page(4), 8 * PAGE}, {page(30), 4 * PAGE}};
    static const int advices[] = {MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_DONTNEED};
    for (unsigned n = 0; n < sizeof advices / sizeof *advices; n++) {
        told("process", syscall(SYS_process_madvise, self, ranges, 2, advices[n], 0));
        show_region();
    }
    told("flags", syscall(SYS_process_madvise, self, ranges, 2, MADV_COLD, 1));
    close(self);
}

int main(int argc, char **argv) {
    static const struct one_case cases[] = {
        {"dontneed", dontneed},
        {"dontneed_all", dontneed_all},
        {"dontneed_hole", dontneed_hole},
        {"dontneed_locked", dontneed_locked},
        {"free", free_and_write},
        {"remove", remove_content},
        {"cold", cold},
        {"populate", populate},
        {"reading", reading},
        {"guards", guards},
        {"unmergeable", unmergeable},
        {"bad_advice", bad_advice},
        {"dontfork", dontfork},
        {"wipeonfork", wipeonfork},
        {"dontdump", dontdump},
        {"hugepage", hugepage},
        {"collapse", collapse},
        {"mlock", lock_some},
        {"mlockall", lock_all},
        {"mlockall_now", lock_now},
        {"mlockall_future", lock_future},
        {"mincore", resident},
        {"msync", sync_some},
        {"policy", policy},
        {"name", name},
        {"process_madvise", of_process},
    };
    return run_case(cases, sizeof cases / sizeof *cases, argc, argv);
}
