/* A program that knows nothing of numerge and does to its mergeable memory all that programs do, from
 * several threads, checking every byte it has reason to know.
 *
 * usage: torture SECONDS [SEED]
 * Ends with 0 and a line of counts, or with 1 and what was wrong.
 *
 * Memory is in arenas, each locked while something is done to it. A page's content is given by a small
 * number, 0 meaning zeros, so that many pages are equal; the numbers are kept beside, in memory that is
 * not mergeable. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, ARENAS = 6, PAGES = 600, THREADS = 4, CONTENTS = 24 };

struct arena {
    pthread_mutex_t lock;
    uint64_t *memory;
    uint8_t content[PAGES];
};

static struct arena arenas[ARENAS];
/* Held where addresses are free for a moment that are to be mapped again. */
static pthread_mutex_t addresses = PTHREAD_MUTEX_INITIALIZER;
static int file_fd, is_direct;
static atomic_int stop;
static atomic_ulong checks, operations, signals_seen;
static uint64_t *atomic_target;

#define FAIL(...)                                                                                  \
    do {                                                                                           \
        fprintf(stderr, "torture: pid %d line %d: ", (int)getpid(), __LINE__);                     \
        fprintf(stderr, __VA_ARGS__);                                                              \
        fputc('\n', stderr);                                                                       \
        _exit(1);                                                                                  \
    } while (0)

#include "fixed_read.h"

/* What a run that is long enough has done successfully, each at least once. */
enum kind {
    FORK, RAW_CLONE, POSIX_SPAWN, VFORK, MAPPED_AGAIN, PART_MAPPED_AGAIN, MAPPED_OVER, MOVED, SHORTENED,
    LENGTHENED, DONTNEED, READ_ONLY, NO_ACCESS, DIRECT_READ, FIXED_READ, UNMERGEABLE, LOCKED, PIPE_READ,
    WRITTEN_BY_PID, WRITTEN_BY_FILE, FILLED, REWRITTEN, KINDS
};
static const char *const kinds[KINDS] = {
    "fork", "raw clone", "posix_spawn", "vfork", "mapped again", "part mapped again", "mapped over", "moved",
    "shortened", "lengthened", "MADV_DONTNEED", "read only", "no access", "O_DIRECT", "io_uring",
    "MADV_UNMERGEABLE", "mlock", "pipe", "process_vm_writev", "/proc/self/mem", "filled", "rewritten",
};
static atomic_ulong done[KINDS];
/* Seconds after which a kind that was never done is an error. */
enum { LONG_ENOUGH = 5 };
/* Of `operate`: the kinds, the common ones more than once. */
enum { CASES = 44 };

static uint64_t next(uint64_t *random) {
    uint64_t z = *random += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static uint64_t word(uint8_t content, unsigned n) {
    uint64_t seed = content * 1000003u + n;
    return content ? next(&seed) : 0;
}

static void fill(struct arena *a, unsigned page, uint8_t content) {
    uint64_t *at = a->memory + (size_t)page * WORDS;
    for (unsigned n = 0; n < WORDS; n++) at[n] = word(content, n);
    a->content[page] = content;
}

static void check(const struct arena *a, unsigned page, const char *when) {
    const volatile uint64_t *at = a->memory + (size_t)page * WORDS;
    for (unsigned n = 0; n < WORDS; n++) {
        uint64_t found = at[n];
        if (found != word(a->content[page], n))
            FAIL("%s: page %u at %p, word %u: %016lx, not content %u (%016lx)", when, page,
                 (void *)at, n, found, a->content[page], word(a->content[page], n));
    }
    checks++;
}

static void check_all(const struct arena *a, const char *when) {
    for (unsigned page = 0; page < PAGES; page++) check(a, page, when);
}

static void offer(void *start, size_t length) {
    /* EINVAL: a kernel without KSM, and nobody in between. */
    if (madvise(start, length, MADV_MERGEABLE) && errno != EINVAL)
        FAIL("MADV_MERGEABLE: %s", strerror(errno));
}

static uint64_t *map(void *where, size_t length, int flags) {
    void *at = mmap(where, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    if (at == MAP_FAILED) FAIL("mmap: %s", strerror(errno));
    return at;
}

/* What a child finds must be what its parent had, and what it does must not show there. */
static _Noreturn void child(struct arena *a, uint64_t random) {
    check_all(a, "child, at first");
    unsigned page = next(&random) % PAGES;
    fill(a, page, 1 + next(&random) % CONTENTS);
    check(a, page, "child, written");
    unsigned first = next(&random) % (PAGES - 16), count = 1 + next(&random) % 16;
    if (madvise(a->memory + (size_t)first * WORDS, (size_t)count * PAGE, MADV_DONTNEED))
        FAIL("child: MADV_DONTNEED: %s", strerror(errno));
    memset(a->content + first, 0, count);
    for (int n = 0; n < 3; n++) {
        check_all(a, "child");
        usleep(next(&random) % 3000);
    }
    check_all(a, "child, in the end");
    _exit(0);
}

static void reap(pid_t pid) {
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) FAIL("waitpid: %s", strerror(errno));
    if (!WIFEXITED(status) || WEXITSTATUS(status)) FAIL("a child ended with %x", status);
}

static void do_fork(struct arena *a, uint64_t random, int raw) {
    pid_t pid = raw ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();
    if (pid < 0) {
        if (errno != EAGAIN && errno != ENOMEM) FAIL("fork: %s", strerror(errno));
        return;
    }
    if (!pid) child(a, random);
    /* The parent goes on writing while the child looks. */
    for (int n = 0; n < 20; n++) fill(a, next(&random) % PAGES, next(&random) % CONTENTS);
    reap(pid);
    done[raw ? RAW_CLONE : FORK]++;
}

static void do_spawn(int with_vfork) {
    static char *arguments[] = {"true", NULL}, *environment[] = {NULL};
    pid_t pid = -1;
    if (!with_vfork) {
        /* The C library's own: a clone with a stack of its own, in the same memory. */
        if (posix_spawn(&pid, "/bin/true", NULL, NULL, arguments, environment)) return;
    } else {
        pid = vfork();
        if (!pid) {
            execve("/bin/true", arguments, environment);
            _exit(1);
        }
    }
    if (pid <= 0) return;
    reap(pid);
    done[with_vfork ? VFORK : POSIX_SPAWN]++;
}

/* The kernel writes: from a pipe, and by what a debugger uses. */
static void do_read(struct arena *a, uint64_t *random) {
    unsigned page = next(random) % PAGES;
    uint64_t *at = a->memory + (size_t)page * WORDS, words[WORDS];
    uint8_t content = next(random) % CONTENTS;
    for (unsigned n = 0; n < WORDS; n++) words[n] = word(content, n);
    int how = next(random) % 3, fds[2];
    if (how == 0) {
        if (pipe(fds)) FAIL("pipe: %s", strerror(errno));
        if (write(fds[1], words, PAGE) != PAGE) FAIL("writing to a pipe: %s", strerror(errno));
        for (size_t done = 0; done < PAGE;) {
            ssize_t got = read(fds[0], (char *)at + done, PAGE - done);
            if (got <= 0) FAIL("reading from a pipe: %zd, %s", got, strerror(errno));
            done += got;
        }
        close(fds[0]);
        close(fds[1]);
    } else if (how == 1) {
        struct iovec from = {words, PAGE}, to = {at, PAGE};
        ssize_t put = process_vm_writev(getpid(), &from, 1, &to, 1, 0);
        if (put != PAGE) FAIL("process_vm_writev: %zd, %s", put, strerror(errno));
    } else {
        /* It may say EIO of a page that is being merged at that moment, as the README tells. */
        int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
        if (fd < 0) FAIL("/proc/self/mem: %s", strerror(errno));
        ssize_t put = -1;
        for (int tries = 0; tries < 10000; tries++) {
            put = pwrite(fd, words, PAGE, (uintptr_t)at);
            if (put != -1 || errno != EIO) break;
            usleep(100);
        }
        if (put != PAGE) FAIL("writing to /proc/self/mem: %zd, %s", put, strerror(errno));
        close(fd);
    }
    a->content[page] = content;
    check(a, page, "written by the kernel");
    done[PIPE_READ + how]++;
}

/* Shorter, longer again, perhaps elsewhere: the end reads as zeros then. */
static void do_resize(struct arena *a, unsigned keep) {
    size_t all = (size_t)PAGES * PAGE;
    pthread_mutex_lock(&addresses);
    void *at = mremap(a->memory, all, (size_t)keep * PAGE, 0);
    if (at != a->memory) FAIL("mremap, shorter: %s", strerror(errno));
    done[SHORTENED]++;
    at = mremap(a->memory, (size_t)keep * PAGE, all, MREMAP_MAYMOVE);
    int error = errno;
    if (at == MAP_FAILED) /* it lies in more than one mapping */
        map(a->memory + (size_t)keep * WORDS, all - (size_t)keep * PAGE, MAP_FIXED_NOREPLACE);
    else
        a->memory = at;
    pthread_mutex_unlock(&addresses);
    if (at == MAP_FAILED && error != EFAULT) FAIL("mremap, longer: %s", strerror(error));
    offer(a->memory, all);
    memset(a->content + keep, 0, PAGES - keep);
    check_all(a, "resized");
    done[LENGTHENED] += at != MAP_FAILED;
}

static void do_direct(struct arena *a, uint64_t *random) {
    unsigned first = next(random) % (PAGES - 8), count = 1 + next(random) % 8;
    unsigned from = next(random) % (CONTENTS - 8);
    ssize_t got = pread(file_fd, a->memory + (size_t)first * WORDS, (size_t)count * PAGE,
                        (off_t)from * PAGE);
    if (got != (ssize_t)count * PAGE) FAIL("O_DIRECT: %zd, %s", got, strerror(errno));
    for (unsigned n = 0; n < count; n++) {
        a->content[first + n] = from + n;
        check(a, first + n, "O_DIRECT");
    }
    done[DIRECT_READ] += is_direct;
}

static void do_fixed_read(struct arena *a, uint64_t *random) {
    unsigned first = next(random) % (PAGES - 8), count = 1 + next(random) % 8;
    unsigned from = next(random) % (CONTENTS - 8), pause = next(random) % 2000;
    void *at = a->memory + (size_t)first * WORDS;
    if (!fixed_read(file_fd, (off_t)from * PAGE, at, (size_t)count * PAGE, pause, &addresses)) return;
    for (unsigned n = 0; n < count; n++) {
        a->content[first + n] = from + n;
        check(a, first + n, "io_uring, pinned");
    }
    done[FIXED_READ]++;
}

static void operate(struct arena *a, unsigned what, uint64_t *random) {
    unsigned first = next(random) % (PAGES - 64), count = 1 + next(random) % 64;
    void *start = a->memory + (size_t)first * WORDS;
    size_t length = (size_t)count * PAGE;
    switch (what) {
    case 0:
        do_fork(a, next(random), 0);
        break;
    case 1:
        do_fork(a, next(random), 1);
        break;
    case 2:
        do_spawn(next(random) % 2);
        break;
    case 3: /* all of it, and again at the same place */
        pthread_mutex_lock(&addresses);
        if (munmap(a->memory, (size_t)PAGES * PAGE)) FAIL("munmap: %s", strerror(errno));
        map(a->memory, (size_t)PAGES * PAGE, MAP_FIXED_NOREPLACE);
        pthread_mutex_unlock(&addresses);
        offer(a->memory, (size_t)PAGES * PAGE);
        memset(a->content, 0, PAGES);
        check_all(a, "mapped again");
        done[MAPPED_AGAIN]++;
        break;
    case 4: /* a part, and again */
        pthread_mutex_lock(&addresses);
        if (munmap(start, length)) FAIL("munmap: %s", strerror(errno));
        map(start, length, MAP_FIXED_NOREPLACE);
        pthread_mutex_unlock(&addresses);
        offer(start, length);
        memset(a->content + first, 0, count);
        done[PART_MAPPED_AGAIN]++;
        break;
    case 5: /* mapped over */
        map(start, length, MAP_FIXED);
        if (next(random) % 2) offer(start, length);
        memset(a->content + first, 0, count);
        done[MAPPED_OVER]++;
        break;
    case 6: { /* moved, and back */
        pthread_mutex_lock(&addresses);
        void *there = map(NULL, (size_t)PAGES * PAGE, 0);
        void *back = a->memory;
        void *at = mremap(back, (size_t)PAGES * PAGE, (size_t)PAGES * PAGE,
                          MREMAP_MAYMOVE | MREMAP_FIXED, there);
        if (at == MAP_FAILED) munmap(there, (size_t)PAGES * PAGE);
        pthread_mutex_unlock(&addresses);
        /* EFAULT: it lies in more than one mapping. */
        if (at == MAP_FAILED && errno == EFAULT) break;
        if (at != there) FAIL("mremap: %s", strerror(errno));
        a->memory = there;
        check_all(a, "moved");
        done[MOVED]++;
        fill(a, first, next(random) % CONTENTS);
        break;
    }
    case 7:
    case 8:
        if (madvise(start, length, MADV_DONTNEED)) FAIL("MADV_DONTNEED: %s", strerror(errno));
        memset(a->content + first, 0, count);
        done[DONTNEED]++;
        break;
    case 9: /* read only, and back */
        if (mprotect(start, length, PROT_READ)) FAIL("mprotect: %s", strerror(errno));
        for (unsigned n = 0; n < count; n++) check(a, first + n, "read only");
        if (mprotect(start, length, PROT_READ | PROT_WRITE)) FAIL("mprotect: %s", strerror(errno));
        done[READ_ONLY]++;
        break;
    case 10: /* nothing, and back */
        if (mprotect(start, length, PROT_NONE)) FAIL("mprotect: %s", strerror(errno));
        sched_yield();
        if (mprotect(start, length, PROT_READ | PROT_WRITE)) FAIL("mprotect: %s", strerror(errno));
        done[NO_ACCESS]++;
        break;
    case 11:
        do_direct(a, random);
        break;
    case 12:
        do_fixed_read(a, random);
        break;
    case 13:
        if (!madvise(start, length, MADV_UNMERGEABLE)) done[UNMERGEABLE]++;
        else if (errno != EINVAL) FAIL("MADV_UNMERGEABLE: %s", strerror(errno));
        offer(start, length);
        break;
    case 14:
        if (!mlock(start, length)) done[LOCKED]++;
        else if (errno != ENOMEM && errno != EPERM) FAIL("mlock: %s", strerror(errno));
        for (unsigned n = 0; n < count; n++) check(a, first + n, "locked");
        munlock(start, length);
        break;
    case 15:
    case 16:
    case 17:
        do_read(a, random);
        break;
    case 18:
        do_resize(a, 1 + next(random) % (PAGES - 1));
        break;
    case 19 ... 28: /* equal runs */
        for (unsigned n = 0; n < count; n++) fill(a, first + n, 1 + n % (CONTENTS - 1));
        done[FILLED]++;
        break;
    default:
        for (int n = 0; n < 10; n++) {
            unsigned page = next(random) % PAGES;
            check(a, page, "before writing");
            if (next(random) % 4 == 0) {
                /* A word, and back: the page is another's for a moment. */
                uint64_t *at = a->memory + (size_t)page * WORDS + next(random) % WORDS;
                uint64_t old = *at;
                *(volatile uint64_t *)at = ~old;
                *(volatile uint64_t *)at = old;
            } else {
                fill(a, page, next(random) % CONTENTS);
            }
            check(a, page, "written");
        }
        done[REWRITTEN]++;
    }
    operations++;
}

static void *work(void *seed) {
    uint64_t random = (uintptr_t)seed;
    /* Each once, wherever that begins, and then as it comes: a slow machine's run is short. */
    unsigned begun = 0, first = next(&random) % CASES;
    while (!stop) {
        struct arena *a = &arenas[next(&random) % ARENAS];
        pthread_mutex_lock(&a->lock);
        operate(a, begun < CASES ? (first + begun++) % CASES : next(&random) % CASES, &random);
        for (int n = 0; n < 20; n++) check(a, next(&random) % PAGES, "after");
        pthread_mutex_unlock(&a->lock);
        /* So that pages are at rest now and then. */
        if (next(&random) % 4 == 0) usleep(next(&random) % 4000);
    }
    return NULL;
}

/* Writes to mergeable memory from a handler, wherever that interrupts. */
static void on_signal(int number) {
    (void)number;
    atomic_target[signals_seen % WORDS]++;
    signals_seen++;
}

/* How often each kind was done; fails if one never was in a run that is long enough. */
static void tell_kinds(int seconds) {
    for (unsigned n = 0; n < KINDS; n++) printf("%s%s %lu", n ? ", " : "", kinds[n], done[n]);
    puts("");
    fflush(stdout);
    for (unsigned n = 0; n < KINDS; n++)
        if (seconds >= LONG_ENOUGH && !done[n]) FAIL("never done in %d s: %s", seconds, kinds[n]);
}

int main(int argc, char **argv) {
    int seconds = argc > 1 ? atoi(argv[1]) : 10;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    char name[] = "torture.XXXXXX";
    file_fd = mkostemp(name, O_DIRECT);
    is_direct = file_fd >= 0;
    if (file_fd < 0 && errno == EINVAL) file_fd = mkstemp(name);
    if (file_fd < 0) FAIL("a file in this directory: %s", strerror(errno));
    unlink(name);
    struct arena scratch = {.memory = map(NULL, PAGES * PAGE, 0)};
    for (unsigned n = 0; n < CONTENTS; n++) {
        fill(&scratch, n, n);
        if (pwrite(file_fd, scratch.memory + (size_t)n * WORDS, PAGE, (off_t)n * PAGE) != PAGE)
            FAIL("writing the file: %s", strerror(errno));
    }
    munmap(scratch.memory, PAGES * PAGE);
    for (unsigned n = 0; n < ARENAS; n++) {
        pthread_mutex_init(&arenas[n].lock, NULL);
        arenas[n].memory = map(NULL, (size_t)PAGES * PAGE, 0);
        offer(arenas[n].memory, (size_t)PAGES * PAGE);
    }
    atomic_target = map(NULL, 1 << 20, 0);
    offer(atomic_target, 1 << 20);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval every = {{0, 2000}, {0, 2000}};
    pthread_t threads[THREADS];
    for (uintptr_t n = 0; n < THREADS; n++)
        if (pthread_create(&threads[n], NULL, work, (void *)(seed * 1000 + n))) FAIL("no threads");
    setitimer(ITIMER_REAL, &every, NULL);
    for (time_t end = time(NULL) + seconds; time(NULL) < end;) usleep(100000);
    stop = 1;
    for (int n = 0; n < THREADS; n++) pthread_join(threads[n], NULL);
    every = (struct itimerval){{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &every, NULL);
    uint64_t counted = 0;
    for (unsigned n = 0; n < WORDS; n++) counted += atomic_target[n];
    if (counted != signals_seen) FAIL("%lu signals, %lu counted in memory", signals_seen, counted);
    for (unsigned n = 0; n < ARENAS; n++) check_all(&arenas[n], "in the end");
    tell_kinds(seconds);
    printf("%lu operations, %lu pages checked, %lu signals: no error\n", operations, checks,
           signals_seen);
    return 0;
}
