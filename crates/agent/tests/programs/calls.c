// Makes one call on memory that is merged, and prints all that can be seen of it. The test compares that
// with what the same program prints without the agent.
#include "client.h"
#include <linux/userfaultfd.h>
#include <setjmp.h>
#include <sys/ioctl.h>
#include <fcntl.h>

#define PAGES 64UL

static unsigned char *region;
static sigjmp_buf out;

static void on_segv(int signal) { siglongjmp(out, signal); }

// One word a page: what it holds, or that it can't be read.
static void show(const char *name, const unsigned char *at, size_t pages) {
    struct sigaction act = {.sa_handler = on_segv}, before_segv, before_bus;
    sigaction(SIGSEGV, &act, &before_segv);
    sigaction(SIGBUS, &act, &before_bus);
    printf("%s:", name);
    for (size_t n = 0; n < pages; n++) {
        int caught = sigsetjmp(out, 1);
        if (caught) {
            printf(" signal");
            continue;
        }
        uint64_t hash = 14695981039346656037UL;
        for (size_t b = 0; b < PAGE; b++)
            hash = (hash ^ at[n * PAGE + b]) * 1099511628211UL;
        printf(" %lx", hash & 0xffffff);
    }
    printf("\n");
    sigaction(SIGSEGV, &before_segv, NULL);
    sigaction(SIGBUS, &before_bus, NULL);
}

static void told(const char *name, long result) {
    printf("%s: %ld %d\n", name, result, result == -1 ? errno : 0);
}

static void can_write(const char *name, unsigned char *at) {
    struct sigaction act = {.sa_handler = on_segv}, before;
    sigaction(SIGSEGV, &act, &before);
    if (sigsetjmp(out, 1)) {
        printf("%s: not writable\n", name);
    } else {
        at[5] += 1;
        printf("%s: writable\n", name);
    }
    sigaction(SIGSEGV, &before, NULL);
}

static void advise(int advice, size_t from, size_t to) {
    told("madvise", madvise(region + from * PAGE, (to - from) * PAGE, advice));
}

// Runs in a forked child, whose output is its own.
static void in_child(void (*act)(void)) {
    fflush(stdout);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        act();
        fflush(stdout);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    printf("child: %d\n", status);
}

static void show_region(void) { show("in child", region, PAGES); }

static void child_drops(void) {
    region[9 * PAGE] = 77;
    advise(MADV_DONTNEED, 4, 40);
    show_region();
    can_write("after", region + 8 * PAGE);
    advise(MADV_FREE, 50, 60);
    show("not freed", region + 60 * PAGE, 4);
    told("mprotect", mprotect(region, 8 * PAGE, PROT_READ));
    can_write("protected", region + PAGE);
    advise(MADV_DONTNEED, 0, 6);
    show_region();
    can_write("still protected", region + PAGE);
}

static void child_moves(void) {
    unsigned char *moved = mremap(region, PAGES * PAGE, 2 * PAGES * PAGE, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED);
    show("moved", moved, 2 * PAGES);
    can_write("moved", moved);
    if (moved != region)
        show("left", region, 1);
}

static void child_of_child(void) {
    in_child(child_drops);
    show_region();
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    const char *name = argv[1];
#define CASE(wanted) if (!strcmp(name, wanted))
    region = anonymous(PAGES + 2) + PAGE;
    for (size_t n = 0; n < PAGES; n++)
        fill(region + n * PAGE, n / 2 + 1);
    told("mergeable", madvise(region, PAGES * PAGE, MADV_MERGEABLE));
    wait_merged(region, PAGES * PAGE);
    // Some are written to after they were merged.
    region[20 * PAGE] = 99;
    region[21 * PAGE + 17] = 98;
    show("before", region, PAGES);

    CASE("nothing") {}
    CASE("dontneed") advise(MADV_DONTNEED, 4, 40);
    CASE("dontneed_all") advise(MADV_DONTNEED, 0, PAGES);
    CASE("dontneed_hole") {
        told("munmap", munmap(region + 10 * PAGE, PAGE));
        advise(MADV_DONTNEED, 4, 40);
    }
    CASE("dontneed_locked") {
        told("mlock", mlock(region + 10 * PAGE, PAGE));
        advise(MADV_DONTNEED, 4, 40);
    }
    CASE("free") {
        advise(MADV_FREE, 4, 40);
        // Whatever is freed may be there still, but what is written stays.
        for (size_t n = 4; n < 40; n++)
            fill(region + n * PAGE, 5);
    }
    CASE("remove") advise(MADV_REMOVE, 4, 40);
    CASE("unmergeable") {
        advise(MADV_UNMERGEABLE, 0, PAGES);
        if (getenv("NUMERGE_SOCKET"))
            CHECK(in_frames(region, PAGES * PAGE) == 0);
    }
    CASE("hugepage") advise(MADV_HUGEPAGE, 0, PAGES);
    CASE("sequential") advise(MADV_SEQUENTIAL, 0, 32);
    CASE("willneed") advise(MADV_WILLNEED, 0, PAGES);
    CASE("pageout") advise(MADV_PAGEOUT, 0, PAGES);
    CASE("cold") advise(MADV_COLD, 0, PAGES);
    CASE("populate") advise(MADV_POPULATE_WRITE, 0, PAGES);
    CASE("dontdump") {
        advise(MADV_DONTDUMP, 3, 9);
        advise(MADV_DODUMP, 3, 9);
    }
    CASE("dontfork") {
        advise(MADV_DONTFORK, 3, 9);
        in_child(show_region);
    }
    CASE("wipeonfork") {
        advise(MADV_WIPEONFORK, 3, 9);
        in_child(show_region);
    }
    CASE("bad_advice") {
        advise(12345, 0, PAGES);
        told("unaligned", madvise(region + 1, PAGE, MADV_DONTNEED));
        told("unaligned mergeable", madvise(region + 1, PAGE, MADV_MERGEABLE));
        told("nothing there", madvise(region - PAGE, 0, MADV_MERGEABLE));
        told("munmap", munmap(region + 10 * PAGE, PAGE));
        told("hole", madvise(region, PAGES * PAGE, MADV_MERGEABLE));
        told("hole", madvise(region, PAGES * PAGE, MADV_UNMERGEABLE));
    }
    CASE("posix") {
        told("posix", posix_madvise(region, PAGES * PAGE, POSIX_MADV_DONTNEED));
        told("posix", posix_madvise(region, PAGES * PAGE, POSIX_MADV_WILLNEED));
        told("posix", posix_madvise(region + 1, PAGE, POSIX_MADV_WILLNEED));
    }
    CASE("munmap") {
        told("munmap", munmap(region + 8 * PAGE, 8 * PAGE));
        unsigned char *again = mmap(region + 8 * PAGE, 8 * PAGE, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        told("again", again == region + 8 * PAGE);
    }
    CASE("map_over") {
        told("over", mmap(region + 8 * PAGE, 8 * PAGE, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
        fill(region + 9 * PAGE, 1234);
    }
    CASE("mprotect") {
        told("read", mprotect(region + 8 * PAGE, 8 * PAGE, PROT_READ));
        can_write("read", region + 9 * PAGE);
        told("none", mprotect(region + 30 * PAGE, 8 * PAGE, PROT_NONE));
        show("none", region, PAGES);
        told("dropped", madvise(region + 32 * PAGE, 4 * PAGE, MADV_DONTNEED));
        told("back", mprotect(region, PAGES * PAGE, PROT_READ | PROT_WRITE));
        can_write("back", region + 9 * PAGE);
    }
    CASE("pkey") {
        told("pkey", syscall(SYS_pkey_mprotect, 0, 0, 0, 0) == 0);
        told("pkey", pkey_mprotect(region, 8 * PAGE, PROT_READ, -1));
        can_write("pkey", region + PAGE);
    }
    CASE("mlock") {
        told("mlock", mlock(region + 3 * PAGE + 7, 5 * PAGE));
        advise(MADV_DONTNEED, 3, 5);
        told("munlock", munlock(region + 3 * PAGE, 6 * PAGE));
        told("mlock2", mlock2(region, 2 * PAGE, MLOCK_ONFAULT));
    }
    CASE("mlockall") {
        told("mlockall", mlockall(MCL_CURRENT | MCL_ONFAULT));
        advise(MADV_DONTNEED, 3, 5);
        told("munlockall", munlockall());
        advise(MADV_DONTNEED, 6, 7);
    }
    CASE("mbind") {
        unsigned long nodes = 1;
        told("mbind", syscall(SYS_mbind, region, 0, 0, NULL, 0, 0));
        long (*bind)(void *, unsigned long, int, const unsigned long *, unsigned long, unsigned) =
            (void *)0;
        extern long mbind(void *, unsigned long, int, const unsigned long *, unsigned long, unsigned)
            __attribute__((weak));
        bind = mbind;
        // Without the agent nothing here has this function: then the system call itself.
        long result = bind ? bind(region, 8 * PAGE, 2, &nodes, 64, 0)
                           : syscall(SYS_mbind, region, 8 * PAGE, 2, &nodes, 64, 0);
        told("mbind", result);
    }
    CASE("named") {
        told("named", prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, region, 8 * PAGE, "some name"));
    }
    CASE("mremap_move") {
        unsigned char *to = anonymous(PAGES);
        told("moved", mremap(region, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
        show("left", region, PAGES);
        region = to;
    }
    CASE("mremap_grow") {
        unsigned char *to = mremap(region, PAGES * PAGE, 2 * PAGES * PAGE, MREMAP_MAYMOVE);
        CHECK(to != MAP_FAILED);
        show("grown", to, 2 * PAGES);
        region = to;
    }
    CASE("mremap_shrink") {
        told("shrunk", mremap(region, PAGES * PAGE, 10 * PAGE, 0) == region);
    }
    CASE("mremap_onto") {
        unsigned char *from = anonymous(8);
        fill(from, 4321);
        told("onto", mremap(from, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, region + 8 * PAGE) ==
                         region + 8 * PAGE);
    }
    CASE("mremap_keep") {
        unsigned char *to = mremap(region, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
        CHECK(to != MAP_FAILED);
        show("moved", to, PAGES);
    }
    CASE("uffd") {
        int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
        CHECK(fd >= 0);
        struct uffdio_api api = {.api = UFFD_API};
        CHECK(ioctl(fd, UFFDIO_API, &api) == 0);
        struct uffdio_register wanted = {
            .range = {.start = (uintptr_t)region, .len = 8 * PAGE},
            .mode = UFFDIO_REGISTER_MODE_MISSING,
        };
        told("register", ioctl(fd, UFFDIO_REGISTER, &wanted));
        told("unregister", ioctl(fd, UFFDIO_UNREGISTER, &wanted.range));
    }
    CASE("fork") in_child(show_region);
    CASE("fork_drops") in_child(child_drops);
    CASE("fork_moves") in_child(child_moves);
    CASE("fork_forks") in_child(child_of_child);

    show("after", region, PAGES);
    // Merging goes on, and what is there stays.
    usleep(50000);
    show("later", region, PAGES);
    for (size_t n = 0; n < PAGES; n += 7)
        can_write("write", region + n * PAGE);
    show("end", region, PAGES);
    return 0;
}
