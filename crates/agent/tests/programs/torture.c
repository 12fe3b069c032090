// Threads do to mergeable memory all that programs do, each in a part of its own, and check its content
// all the while. The first argument is for how many milliseconds.
#include "client.h"
#include <pthread.h>

#define THREADS 3
#define PAGES 128UL

static volatile int stop;
static volatile unsigned long ticks, operations;

static void on_alarm(int signal) {
    (void)signal;
    // Signal handlers map memory too.
    void *at = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at != MAP_FAILED) {
        madvise(at, 3 * PAGE, MADV_MERGEABLE);
        munmap(at, 3 * PAGE);
    }
    ticks++;
}

struct state {
    unsigned char *region;
    uint64_t content[PAGES];
    uint64_t seed;
};

static uint64_t next(struct state *s, uint64_t below) {
    s->seed += 0x9E3779B97F4A7C15UL;
    uint64_t z = s->seed;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9UL;
    z = (z ^ z >> 27) * 0x94D049BB133111EBUL;
    return (z ^ z >> 31) % below;
}

static void check(struct state *s) {
    for (size_t n = 0; n < PAGES; n++)
        CHECK(holds(s->region + n * PAGE, s->content[n]));
}

static void write_page(struct state *s, size_t n) {
    // Few different contents, so that much is merged.
    s->content[n] = next(s, 5);
    fill(s->region + n * PAGE, s->content[n]);
}

static void in_child(struct state *s) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        check(s);
        size_t from = next(s, PAGES), to = from + next(s, PAGES - from) + 1;
        write_page(s, from);
        check(s);
        CHECK(madvise(s->region + from * PAGE, (to - from) * PAGE, MADV_DONTNEED) == 0);
        memset(s->content + from, 0, (to - from) * sizeof *s->content);
        check(s);
        write_page(s, from);
        check(s);
        _exit(0);
    }
    check(s);
    int status;
    while (waitpid(child, &status, 0) < 0)
        CHECK(errno == EINTR);
    if (status) {
        printf("child: %x\n", status);
        fflush(stdout);
        _exit(5);
    }
}

static void operate(struct state *s) {
    size_t from = next(s, PAGES), pages = next(s, PAGES - from) + 1;
    unsigned char *at = s->region + from * PAGE;
    size_t len = pages * PAGE;
    switch (next(s, 14)) {
    case 0:
        CHECK(madvise(at, len, MADV_DONTNEED) == 0);
        memset(s->content + from, 0, pages * sizeof *s->content);
        break;
    case 1:
        CHECK(mmap(at, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
        memset(s->content + from, 0, pages * sizeof *s->content);
        CHECK(madvise(at, len, MADV_MERGEABLE) == 0);
        break;
    case 2:
        // What comes next may be at the same place.
        CHECK(munmap(s->region, PAGES * PAGE) == 0);
        s->region = anonymous(PAGES);
        memset(s->content, 0, sizeof s->content);
        CHECK(madvise(s->region, PAGES * PAGE, MADV_MERGEABLE) == 0);
        break;
    case 3:
        CHECK(mprotect(at, len, PROT_READ) == 0);
        check(s);
        CHECK(mprotect(at, len, PROT_READ | PROT_WRITE) == 0);
        break;
    case 4: {
        // Away and back, a page, for more may be several mappings. No other thread may get its place.
        unsigned char *to = anonymous(1);
        int away = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
        CHECK(mremap(at, PAGE, PAGE, away, to) == to);
        CHECK(holds(to, s->content[from]));
        CHECK(holds(at, 0));
        CHECK(mremap(to, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at);
        break;
    }
    case 5:
        CHECK(mlock(at, len) == 0);
        CHECK(munlock(at, len) == 0);
        break;
    case 6:
        CHECK(madvise(at, len, MADV_UNMERGEABLE) == 0);
        check(s);
        CHECK(madvise(at, len, MADV_MERGEABLE) == 0);
        break;
    case 7:
        CHECK(madvise(at, len, MADV_DONTFORK) == 0);
        CHECK(madvise(at, len, MADV_DOFORK) == 0);
        break;
    case 8:
        in_child(s);
        break;
    case 9:
        CHECK(madvise(at, len, MADV_FREE) == 0);
        for (size_t n = from; n < from + pages; n++)
            write_page(s, n);
        break;
    case 10: {
        // System calls into what may be merged just now.
        int pipes[2];
        CHECK(pipe(pipes) == 0);
        CHECK(write(pipes[1], at, PAGE) == (ssize_t)PAGE);
        size_t other = next(s, PAGES);
        CHECK(read(pipes[0], s->region + other * PAGE, PAGE) == (ssize_t)PAGE);
        s->content[other] = s->content[from];
        close(pipes[0]);
        close(pipes[1]);
        break;
    }
    default:
        for (int n = 0; n < 20; n++)
            write_page(s, next(s, PAGES));
    }
    check(s);
    operations++;
}

static void *work(void *argument) {
    struct state *s = argument;
    s->region = anonymous(PAGES);
    CHECK(madvise(s->region, PAGES * PAGE, MADV_MERGEABLE) == 0);
    while (!stop)
        operate(s);
    CHECK(munmap(s->region, PAGES * PAGE) == 0);
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    struct sigaction act = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &act, NULL) == 0);
    static struct state states[THREADS];
    pthread_t threads[THREADS];
    for (int n = 0; n < THREADS; n++) {
        states[n].seed = n + 1;
        CHECK(pthread_create(&threads[n], NULL, work, &states[n]) == 0);
    }
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    struct itimerspec every = {.it_interval = {0, 3000000}, .it_value = {0, 3000000}};
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    CHECK(timer_settime(timer, 0, &every, NULL) == 0);
    struct timespec now, until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += atoi(argv[1]) / 1000;
    until.tv_nsec += atoi(argv[1]) % 1000 * 1000000L;
    do {
        usleep(10000);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec < until.tv_sec || (now.tv_sec == until.tv_sec && now.tv_nsec < until.tv_nsec));
    stop = 1;
    for (int n = 0; n < THREADS; n++)
        CHECK(pthread_join(threads[n], NULL) == 0);
    printf("%lu operations, %lu signals\n", operations, ticks);
    return 0;
}
