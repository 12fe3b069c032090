/* A program that forks, and gives its mergeable memory up and maps it again at the same place, all the while
 * checking what is there; by the C library or past it.
 *
 * usage: bypass library|syscall|raw|marked SECONDS
 *   library   all calls by the C library's functions
 *   syscall   by its syscall(3)
 *   raw       all calls on this memory, and forks, by instructions of its own (x86_64)
 *   marked    the same, but that the C library's madvise marks the memory
 * Ends with 7. */
#include "pages.h"
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

enum { PAGES = 256, PIECE = 64, CONTENTS = 20, GOOD = 7 };

static int is_library, is_raw, marks_raw;
static char *memory;
static unsigned content[PAGES];

/* The result, or a negative error. */
static long raw(long number, long a, long b, long c, long d, long e, long f) {
    if (!is_raw) {
        long result = syscall(number, a, b, c, d, e, f);
        return result == -1 ? -errno : result;
    }
#ifdef __x86_64__
    long result;
    register long fourth __asm__("r10") = d, fifth __asm__("r8") = e, sixth __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth), "r"(sixth)
                     : "rcx", "r11", "memory");
    return result;
#else
    FAIL("no such calls on this machine: %ld %lx %lx %lx %lx %lx %lx", number, a, b, c, d, e, f);
#endif
}

static char *map_there(char *place, size_t pages) {
    enum { READ_WRITE = PROT_READ | PROT_WRITE };
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (place ? MAP_FIXED_NOREPLACE : 0);
    if (is_library) {
        char *at = mmap(place, pages * PAGE, READ_WRITE, flags, -1, 0);
        if (at == MAP_FAILED) FAIL("mmap");
        return at;
    }
    long at = raw(SYS_mmap, (long)place, (long)pages * PAGE, READ_WRITE, flags, -1, 0);
    if (at < 0 && at > -PAGE) FAIL("mmap: %ld", at);
    return (char *)at;
}

static void unmap(char *place, size_t pages) {
    long failed = is_library ? munmap(place, pages * PAGE)
                             : raw(SYS_munmap, (long)place, (long)pages * PAGE, 0, 0, 0, 0);
    if (failed) FAIL("munmap: %ld", failed);
}

static void mark(char *place, size_t pages) {
    /* Without KSM, and nobody in between, it is refused. */
    if (marks_raw) raw(SYS_madvise, (long)place, (long)pages * PAGE, MADV_MERGEABLE, 0, 0, 0);
    else offer(place, pages);
}

static void fill_pages(unsigned first, unsigned pages, unsigned round) {
    for (unsigned n = first; n < first + pages; n++)
        fill(memory + (size_t)n * PAGE, content[n] = 1 + (n + round) % CONTENTS);
}

static void check(const char *who) {
    for (unsigned n = 0; n < PAGES; n++)
        if (differs(memory + (size_t)n * PAGE, content[n]) >= 0) FAIL("%s: page %u is wrong", who, n);
}

static void fork_and_check(void) {
    pid_t child = is_library ? fork() : (pid_t)raw(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0);
    if (child < 0) FAIL("fork");
    if (child == 0) {
        check("child");
        _exit(0);
    }
    int status;
    if (waitpid(child, &status, 0) != child || status) FAIL("the child ended with %x", status);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    is_library = strcmp(argv[1], "library") == 0;
    is_raw = !is_library && strcmp(argv[1], "syscall");
    marks_raw = !is_library && strcmp(argv[1], "marked");
    memory = map_there(NULL, PAGES);
    mark(memory, PAGES);
    fill_pages(0, PAGES, 0);
    unsigned round = 0;
    for (time_t end = time(NULL) + atoi(argv[2]); time(NULL) < end; round++) {
        unsigned first = round * 37 % (PAGES - PIECE);
        check("after a pause");
        fork_and_check();
        unmap(memory + (size_t)first * PAGE, PIECE);
        map_there(memory + (size_t)first * PAGE, PIECE);
        mark(memory + (size_t)first * PAGE, PIECE);
        fill_pages(first, PIECE, round);
        check("mapped again");
        usleep(round * 101 % 3000);
    }
    printf("%u rounds\n", round);
    return GOOD;
}
