// Programs that are hard on whoever merges their memory, one a case. Each ends with "fine", or by status.
#include "client.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <sys/shm.h>

#define PAGES 64UL

static unsigned char *region;

static unsigned char *offered(size_t pages, uint64_t content) {
    unsigned char *at = anonymous(pages);
    for (size_t n = 0; n < pages; n++)
        fill(at + n * PAGE, content + n % 16);
    CHECK(madvise(at, pages * PAGE, MADV_MERGEABLE) == 0);
    return at;
}

static void check(const unsigned char *at, size_t pages, uint64_t content) {
    for (size_t n = 0; n < pages; n++)
        CHECK(holds(at + n * PAGE, content + n % 16));
}

static void check_zeros(const unsigned char *at, size_t pages) {
    for (size_t n = 0; n < pages; n++)
        CHECK(holds(at + n * PAGE, 0));
}

static void fine(void) {
    printf("fine\n");
    fflush(stdout);
    exit(0);
}

static void wait_child(pid_t child) {
    int status;
    CHECK(child > 0);
    while (waitpid(child, &status, 0) < 0)
        CHECK(errno == EINTR);
    CHECK(status == 0);
}

// What a child does with the memory that it has from its parent.
static void use_inherited(void) {
    check(region, PAGES, 1);
    fill(region, 77);
    CHECK(madvise(region + PAGE, 8 * PAGE, MADV_DONTNEED) == 0);
    check_zeros(region + PAGE, 8);
    CHECK(holds(region, 77));
}

static void in_forked_child(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        use_inherited();
        _exit(0);
    }
    wait_child(child);
}

// The first thread ends, others live on.
static pthread_t first;

static void *lives_on(void *argument) {
    (void)argument;
    CHECK(pthread_join(first, NULL) == 0);
    for (int round = 0; round < 20; round++) {
        check(region, PAGES, 1);
        in_forked_child();
        CHECK(madvise(region, 8 * PAGE, MADV_DONTNEED) == 0);
        check_zeros(region, 8);
        CHECK(mprotect(region + 16 * PAGE, 8 * PAGE, PROT_READ) == 0);
        CHECK(mprotect(region + 16 * PAGE, 8 * PAGE, PROT_READ | PROT_WRITE) == 0);
        for (size_t n = 0; n < 8; n++)
            fill(region + n * PAGE, 1 + n);
        unsigned char *more = offered(PAGES, 30);
        usleep(10000);
        check(more, PAGES, 30);
        CHECK(munmap(more, PAGES * PAGE) == 0);
    }
    fine();
    return NULL;
}

static void first_thread_ends(void) {
    pthread_t other;
    first = pthread_self();
    CHECK(pthread_create(&other, NULL, lives_on, NULL) == 0);
    pthread_exit(NULL);
}

// All threads end: then the process does, with status 0.
static void *ends(void *argument) {
    (void)argument;
    usleep(20000);
    check(region, PAGES, 1);
    return NULL;
}

static void told_at_exit(void) {
    printf("fine\n");
    fflush(stdout);
}

static void last_thread_ends(void) {
    pthread_t other;
    CHECK(atexit(told_at_exit) == 0);
    CHECK(pthread_create(&other, NULL, ends, NULL) == 0);
    pthread_exit(NULL);
}

// Handlers of forks take a lock that other threads hold while they map memory.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static volatile int stop;

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_fork(void) { pthread_mutex_unlock(&lock); }

static void *maps_locked(void *argument) {
    while (!stop) {
        pthread_mutex_lock(&lock);
        unsigned char *at = offered(4, 3);
        CHECK(madvise(at, PAGE, MADV_DONTNEED) == 0);
        CHECK(mprotect(at, PAGE, PROT_NONE) == 0);
        CHECK(munmap(at, 4 * PAGE) == 0);
        pthread_mutex_unlock(&lock);
    }
    return argument;
}

static void atfork_lock(void) {
    pthread_t other[2];
    CHECK(pthread_atfork(before_fork, after_fork, after_fork) == 0);
    for (int n = 0; n < 2; n++)
        CHECK(pthread_create(&other[n], NULL, maps_locked, NULL) == 0);
    for (int n = 0; n < 200; n++)
        in_forked_child();
    stop = 1;
    for (int n = 0; n < 2; n++)
        CHECK(pthread_join(other[n], NULL) == 0);
    check(region, PAGES, 1);
}

// process_madvise(2) on the process itself, whatever this kernel allows of it.
static void process_advice(void) {
    int self = syscall(SYS_pidfd_open, getpid(), 0);
    CHECK(self >= 0);
    struct iovec ranges[2] = {{region, 4 * PAGE}, {region + 8 * PAGE, 4 * PAGE}};
    ssize_t done = syscall(SYS_process_madvise, self, ranges, 2, MADV_DONTNEED, 0);
    printf("%zd bytes dropped\n", done);
    if (done < 0) {
        CHECK(errno == EINVAL); // before Linux 6.13
        check(region, PAGES, 1);
    } else {
        CHECK(done == 8 * (ssize_t)PAGE);
        check_zeros(region, 4);
        check_zeros(region + 8 * PAGE, 4);
        CHECK(holds(region + 4 * PAGE, 5) && holds(region + 12 * PAGE, 13));
    }
    CHECK(syscall(SYS_process_madvise, self, ranges, 2, MADV_COLD, 0) == 8 * (ssize_t)PAGE);
    CHECK(syscall(SYS_process_madvise, self, ranges, 2, MADV_COLD, 1) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_process_madvise, -1, ranges, 2, MADV_COLD, 0) == -1 && errno == EBADF);
    if (done < 0)
        CHECK(madvise(region, 4 * PAGE, MADV_DONTNEED) == 0);
    fill(region, 1);
    fill(region + PAGE, 2);
    // Which it can't be before the engine knows that it was.
    wait_merged(region, 2 * PAGE);
}

// What was merged is unmapped, and its place used for all that may be mapped there.
static void reuse(void) {
    char name[] = "/tmp/numerge-reuse-XXXXXX";
    int file = mkstemp(name);
    CHECK(file >= 0 && unlink(name) == 0);
    unsigned char page[PAGE];
    for (size_t n = 0; n < PAGES; n++) {
        fill(page, 500 + n % 16);
        CHECK(write(file, page, PAGE) == (ssize_t)PAGE);
    }
    const int anonymous = MAP_ANONYMOUS, usable = PROT_READ | PROT_WRITE;
    const int kinds[] = {MAP_SHARED | anonymous, MAP_PRIVATE, MAP_SHARED,
                         MAP_PRIVATE | anonymous | MAP_STACK,
                         MAP_PRIVATE | anonymous | MAP_GROWSDOWN, MAP_PRIVATE | anonymous};
    for (int round = 0; round < 4; round++)
        for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
            int is_file = !(kinds[kind] & anonymous);
            // Over what is there, or where it was.
            int flags = kinds[kind] | (round % 2 ? MAP_FIXED : MAP_FIXED_NOREPLACE);
            wait_merged(region, PAGES * PAGE);
            if (round % 2 == 0)
                CHECK(munmap(region, PAGES * PAGE) == 0);
            CHECK(mmap(region, PAGES * PAGE, usable, flags, is_file ? file : -1, 0) == region);
            if (is_file)
                check(region, PAGES, 500);
            else
                check_zeros(region, PAGES);
            for (size_t n = 0; n < PAGES; n++)
                fill(region + n * PAGE, 500 + n % 16);
            usleep(60000);
            check(region, PAGES, 500);
            CHECK(madvise(region, 8 * PAGE, MADV_DONTNEED) == 0);
            if (kinds[kind] & MAP_PRIVATE && !is_file)
                check_zeros(region, 8);
            else
                check(region, 8, 500);
            check(region + 16 * PAGE, PAGES - 16, 500);
            CHECK(munmap(region, PAGES * PAGE) == 0);
            CHECK(mmap(region, PAGES * PAGE, usable, MAP_PRIVATE | anonymous | MAP_FIXED_NOREPLACE, -1,
                       0) == region);
            for (size_t n = 0; n < PAGES; n++)
                fill(region + n * PAGE, 1 + n % 16);
            CHECK(madvise(region, PAGES * PAGE, MADV_MERGEABLE) == 0);
        }
    check(region, PAGES, 1);
}

// Mappings whose writes somebody tracks.
static size_t tracked(void) {
    FILE *smaps = fopen("/proc/self/smaps", "r");
    char line[512];
    size_t found = 0;
    CHECK(smaps);
    while (fgets(line, sizeof line, smaps))
        found += !strncmp(line, "VmFlags:", 8) && strstr(line, " uw");
    fclose(smaps);
    return found;
}

// More to tell an engine at once than may wait to be told.
static void storm(void) {
    enum { REGIONS = 12000 };
    unsigned char *many = anonymous(2 * REGIONS);
    for (size_t n = 0; n < REGIONS; n++) {
        fill(many + 2 * n * PAGE, 1 + n % 50);
        CHECK(madvise(many + 2 * n * PAGE, PAGE, MADV_MERGEABLE) == 0);
    }
    while (getenv("NUMERGE_SOCKET") && tracked() < REGIONS)
        usleep(50000);
    for (size_t n = 0; n < REGIONS; n++)
        CHECK(munmap(many + 2 * n * PAGE, PAGE) == 0);
    check(region, PAGES, 1);
    // What is offered now is merged, so there is an engine again.
    unsigned char *more = offered(PAGES, 60);
    wait_merged(more, PAGES * PAGE);
    check(more, PAGES, 60);
    wait_merged(region, PAGES * PAGE);
    check(region, PAGES, 1);
    for (size_t n = 0; n < REGIONS; n++)
        CHECK(holds(many + (2 * n + 1) * PAGE, 0));
}

// Many mappings side by side, offered at once: those that can be written to are told of.
static void patchwork(void) {
    enum { REGIONS = 12000 };
    unsigned char *many = anonymous(2 * REGIONS);
    for (size_t n = 0; n < 2 * REGIONS; n++)
        fill(many + n * PAGE, 1 + n % 50);
    for (size_t n = 0; n < REGIONS; n++)
        CHECK(mprotect(many + 2 * n * PAGE, PAGE, PROT_READ) == 0);
    CHECK(madvise(many, 2 * REGIONS * PAGE, MADV_MERGEABLE) == 0);
    while (getenv("NUMERGE_SOCKET") && tracked() < REGIONS)
        usleep(50000);
    for (size_t n = 0; n < 2 * REGIONS; n++)
        CHECK(holds(many + n * PAGE, 1 + n % 50));
}

// Memory that the C library maps and unmaps itself is left alone, whatever the program says of it.
static void librarys_own(void) {
    for (int round = 0; round < 3; round++) {
        unsigned char *chunk;
        CHECK(posix_memalign((void **)&chunk, PAGE, 256 * PAGE) == 0);
        for (size_t n = 0; n < 256; n++)
            fill(chunk + n * PAGE, 9);
        CHECK(madvise(chunk, 256 * PAGE, MADV_MERGEABLE) == 0);
        unsigned char *after = offered(PAGES, 20);
        wait_merged(after, PAGES * PAGE);
        usleep(50000);
        CHECK(in_frames(chunk, 256 * PAGE) == 0);
        free(chunk);
        CHECK(munmap(after, PAGES * PAGE) == 0);
    }
}

// A place that was the program's own, and is the C library's now.
static void places_that_change_hands(void) {
    static unsigned char *chunks[64];
    for (int round = 0; round < 20; round++) {
        // mmap's own threshold is 128 KiB; what is freed below is where malloc maps next.
        unsigned char *own = anonymous(40 * 64);
        CHECK(munmap(own, 40 * 64 * PAGE) == 0);
        for (int n = 0; n < 64; n++) {
            CHECK(posix_memalign((void **)&chunks[n], PAGE, 38 * PAGE) == 0);
            memset(chunks[n], 5, 38 * PAGE);
            CHECK(madvise(chunks[n], 38 * PAGE, MADV_MERGEABLE) == 0);
        }
        usleep(30000);
        for (int n = 0; n < 64; n++) {
            CHECK(in_frames(chunks[n], 38 * PAGE) == 0);
            free(chunks[n]);
        }
        for (int n = 0; n < 64; n++) {
            unsigned char *zeros = calloc(38, PAGE);
            CHECK(zeros);
            check_zeros(zeros, 38);
            chunks[n] = zeros;
        }
        for (int n = 0; n < 64; n++)
            free(chunks[n]);
    }
}

// Processes made in all the ways there are, while memory is being merged.
static int on_own_stack(void *argument) {
    CHECK(argument == region);
    use_inherited();
    return 0;
}

static void in_child_and_end(pid_t child) {
    if (child == 0) {
        use_inherited();
        _exit(0);
    }
    wait_child(child);
}

static void kinds_of_fork(void) {
    extern pid_t _Fork(void);
    extern char **environ;
    enum { STACK = 64 << 10 };
    unsigned char *stack = anonymous(STACK / PAGE);
    for (int round = 0; round < 40; round++) {
        // Something to merge.
        unsigned char *more = offered(PAGES, 40);
        in_child_and_end(fork());
        in_child_and_end(_Fork());
        in_child_and_end(syscall(SYS_fork));
        in_child_and_end(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
        struct clone_args arguments = {.exit_signal = SIGCHLD};
        in_child_and_end(syscall(SYS_clone3, &arguments, sizeof arguments));
        wait_child(clone(on_own_stack, stack + STACK, SIGCHLD, region));
        pid_t child = vfork();
        if (child == 0)
            _exit(0);
        wait_child(child);
        if (round % 10 == 0) {
            char *const words[] = {"true", NULL};
            CHECK(posix_spawnp(&child, "true", NULL, NULL, words, environ) == 0);
            wait_child(child);
            CHECK(system("true") == 0);
            FILE *said = popen("echo word", "r");
            char word[16] = "";
            CHECK(said && fgets(word, sizeof word, said) && !strcmp(word, "word\n"));
            CHECK(pclose(said) == 0);
        }
        check(region, PAGES, 1);
        check(more, PAGES, 40);
        CHECK(munmap(more, PAGES * PAGE) == 0);
    }
}

// A child made by clone(2) has memory of its own merged.
static int offers(void *argument) {
    unsigned char *own = offered(PAGES, 50);
    wait_merged(own, PAGES * PAGE);
    check(own, PAGES, 50);
    check(region, PAGES, 1);
    return argument != region;
}

static void clone_offers(void) {
    enum { STACK = 256 << 10 };
    unsigned char *stack = anonymous(STACK / PAGE);
    fflush(stdout);
    wait_child(clone(offers, stack + STACK, SIGCHLD, region));
}

// Shared memory attached over what is merged.
static void segments(void) {
    int segment = shmget(IPC_PRIVATE, 16 * PAGE, IPC_CREAT | 0600);
    CHECK(segment >= 0);
    unsigned char *elsewhere = shmat(segment, NULL, 0);
    CHECK(elsewhere != (void *)-1);
    for (size_t n = 0; n < 16; n++)
        fill(elsewhere + n * PAGE, 300 + n);
    CHECK(shmat(segment, region + 8 * PAGE, 0) == (void *)-1 && errno == EINVAL);
    CHECK(shmat(segment, region + 8 * PAGE + 5, SHM_REMAP | SHM_RND) == region + 8 * PAGE);
    CHECK(shmctl(segment, IPC_RMID, NULL) == 0);
    usleep(50000);
    check(region, 8, 1);
    check(region + 8 * PAGE, 16, 300);
    CHECK(madvise(region, PAGES * PAGE, MADV_DONTNEED) == 0);
    check_zeros(region, 8);
    check(region + 8 * PAGE, 16, 300);
    check_zeros(region + 24 * PAGE, PAGES - 24);
    fill(region + 9 * PAGE, 7);
    CHECK(holds(elsewhere + PAGE, 7));
    CHECK(shmdt(region + 8 * PAGE) == 0);
    CHECK(mmap(region + 8 * PAGE, 16 * PAGE, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == region + 8 * PAGE);
    check_zeros(region + 8 * PAGE, 16);
    CHECK(holds(elsewhere + PAGE, 7));
    CHECK(shmdt(elsewhere) == 0);
}

// Threads on stacks in memory that was merged. The kernel tells their end in there, and can't wait to.
static void *short_lived(void *argument) {
    check(region, PAGES, 1);
    return argument;
}

// Locks that the kernel writes to, which can't wait for a page either, in memory merged before or after.
static void kernels_locks(void) {
    unsigned char *later = anonymous(PAGES);
    memset(later, 7, PAGES * PAGE);
    pthread_mutexattr_t inherits, robust;
    CHECK(pthread_mutexattr_init(&inherits) == 0 && pthread_mutexattr_init(&robust) == 0);
    CHECK(pthread_mutexattr_setprotocol(&inherits, PTHREAD_PRIO_INHERIT) == 0);
    CHECK(pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST) == 0);
    unsigned char *places[] = {region, later};
    for (int n = 0; n < 2; n++) {
        CHECK(pthread_mutex_init((void *)(places[n] + 1 * PAGE), &inherits) == 0);
        CHECK(pthread_mutex_init((void *)(places[n] + 3 * PAGE), &robust) == 0);
        CHECK(pthread_mutex_init((void *)(places[n] + 5 * PAGE), NULL) == 0);
        CHECK(madvise(places[n], PAGES * PAGE, MADV_MERGEABLE) == 0);
    }
    for (int n = 0; n < 2; n++) {
        wait_merged(places[n] + 4 * PAGE, (PAGES - 4) * PAGE);
        for (int lock = 1; lock <= 3; lock += 2) {
            CHECK(in_frames(places[n] + lock * PAGE, PAGE) == 0);
            CHECK(pthread_mutex_lock((void *)(places[n] + lock * PAGE)) == 0);
            CHECK(pthread_mutex_unlock((void *)(places[n] + lock * PAGE)) == 0);
        }
    }
}

static void own_stacks(void) {
    enum { STACK = 256 << 10 };
    unsigned char *stacks = anonymous(4 * STACK / PAGE);
    memset(stacks, 0x55, 4 * STACK);
    CHECK(madvise(stacks, 4 * STACK, MADV_MERGEABLE) == 0);
    wait_merged(stacks, 4 * STACK);
    pthread_attr_t attributes[4];
    for (int n = 0; n < 4; n++) {
        CHECK(pthread_attr_init(&attributes[n]) == 0);
        CHECK(pthread_attr_setstack(&attributes[n], stacks + n * STACK, STACK) == 0);
    }
    CHECK(madvise(stacks, 4 * STACK, MADV_MERGEABLE) == 0);
    for (int round = 0; round < 100; round++) {
        pthread_t threads[4];
        for (int n = 0; n < 4; n++)
            CHECK(pthread_create(&threads[n], &attributes[n], short_lived, stacks) == 0);
        for (int n = 0; n < 4; n++) {
            void *result;
            CHECK(pthread_join(threads[n], &result) == 0 && result == stacks);
        }
        usleep(1000);
        // So none of these pages is ever frozen.
        CHECK(in_frames(stacks, 4 * STACK) == 0);
    }
}

// The program closes whatever it finds open, and uses the numbers for files of its own.
static void closes_files(void) {
    enum { FILES = 60 };
    CHECK(syscall(SYS_close_range, 3, ~0U, 0) == 0);
    int files[FILES];
    for (int n = 0; n < FILES; n++) {
        char name[] = "/tmp/numerge-closes-XXXXXX";
        files[n] = mkstemp(name);
        CHECK(files[n] >= 0 && unlink(name) == 0);
        CHECK(write(files[n], name, sizeof name) == sizeof name);
    }
    // No file is the program's that it has not opened.
    CHECK(files[FILES - 1] == 3 + FILES - 1);
    for (int round = 0; round < 5; round++) {
        unsigned char *more = offered(PAGES, 20);
        wait_merged(more, PAGES * PAGE);
        CHECK(mprotect(more, 8 * PAGE, PROT_READ) == 0);
        CHECK(mprotect(more, 8 * PAGE, PROT_READ | PROT_WRITE) == 0);
        CHECK(madvise(more, PAGES * PAGE, MADV_UNMERGEABLE) == 0);
        check(more, PAGES, 20);
        CHECK(munmap(more, PAGES * PAGE) == 0);
        in_forked_child();
    }
    for (int n = 0; n < FILES; n++)
        CHECK(lseek(files[n], 0, SEEK_END) == sizeof "/tmp/numerge-closes-XXXXXX" && close(files[n]) == 0);
    // The last writer of a pipe is gone when the program has closed it.
    int ends[2];
    char byte;
    CHECK(pipe(ends) == 0);
    CHECK(madvise(region, PAGE, MADV_UNMERGEABLE) == 0);
    CHECK(close(ends[1]) == 0 && read(ends[0], &byte, 1) == 0);
    check(region, PAGES, 1);
}

// The program gives up its rights.
static void other_user(void) {
    CHECK(setgid(65534) == 0 && setuid(65534) == 0);
    for (int round = 0; round < 5; round++) {
        check(region, PAGES, 1);
        in_forked_child();
        CHECK(madvise(region, 8 * PAGE, MADV_DONTNEED) == 0);
        check_zeros(region, 8);
        for (size_t n = 0; n < 8; n++)
            fill(region + n * PAGE, 1 + n);
        CHECK(mprotect(region + 16 * PAGE, 8 * PAGE, PROT_READ) == 0);
        CHECK(mprotect(region + 16 * PAGE, 8 * PAGE, PROT_READ | PROT_WRITE) == 0);
        usleep(30000);
    }
    CHECK(munmap(region, PAGES * PAGE) == 0);
}

// The first thread may do no more than read, write and end.
static void strict(void) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    CHECK(prctl(PR_SET_SECCOMP, 1, 0, 0, 0) == 0);
    for (int round = 0; round < 2000; round++) {
        size_t at = round % PAGES;
        // Into what may be merged just now.
        if (write(ends[1], region + at * PAGE, PAGE) != (ssize_t)PAGE ||
            read(ends[0], region + at * PAGE, PAGE) != (ssize_t)PAGE || !holds(region + at * PAGE, 1 + at % 16)) {
            (void)!write(1, "bad\n", 4);
            syscall(SYS_exit, 3);
        }
    }
    (void)!write(1, "fine\n", 5);
    syscall(SYS_exit, 0);
}

// Libraries come and go where memory was.
static void libraries(void) {
    for (int round = 0; round < 50; round++) {
        unsigned char *more = offered(4 * PAGES, 20);
        if (round % 10 == 0)
            wait_merged(more, 4 * PAGES * PAGE);
        CHECK(munmap(more, 2 * PAGES * PAGE) == 0);
        void *library = dlopen("libm.so.6", RTLD_NOW | RTLD_LOCAL);
        CHECK(library);
        double (*root)(double) = (double (*)(double))dlsym(library, "sqrt");
        CHECK(root && root(49) == 7);
        CHECK(dlclose(library) == 0);
        check(more + 2 * PAGES * PAGE, 2 * PAGES, 20);
        CHECK(munmap(more + 2 * PAGES * PAGE, 2 * PAGES * PAGE) == 0);
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    static const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {
        {"first_thread_ends", first_thread_ends},
        {"last_thread_ends", last_thread_ends},
        {"atfork_lock", atfork_lock},
        {"process_advice", process_advice},
        {"reuse", reuse},
        {"patchwork", patchwork},
        {"storm", storm},
        {"kinds_of_fork", kinds_of_fork},
        {"clone_offers", clone_offers},
        {"segments", segments},
        {"own_stacks", own_stacks},
        {"closes_files", closes_files},
        {"other_user", other_user},
        {"strict", strict},
        {"libraries", libraries},
        {"kernels_locks", kernels_locks},
        {"librarys_own", librarys_own},
        {"places_that_change_hands", places_that_change_hands},
    };
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++)
        if (!strcmp(argv[1], cases[n].name)) {
            region = offered(PAGES, 1);
            wait_merged(region, PAGES * PAGE);
            cases[n].run();
            fine();
        }
    return 2;
}
