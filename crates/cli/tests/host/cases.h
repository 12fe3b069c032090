/* A program of cases: each does something to memory, and prints all that can be seen of it. The tests compare
 * that with what it prints without numerge.
 *
 * usage: PROGRAM [CASE]   without one it prints their names
 * What is tried is REGION, 64 pages, each equal to another and so merged when a case begins, but for two
 * that were written to since. */
#include "pages.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum { PAGES = 64 };

static char *region;

struct one_case {
    const char *name;
    void (*run)(void);
};

static sigjmp_buf after_fault;

static void on_fault(int number) { siglongjmp(after_fault, number); }

static inline void catch_faults(int on) {
    struct sigaction action = {.sa_handler = on ? on_fault : SIG_DFL};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
}

static inline char *page(unsigned n) { return region + (size_t)n * PAGE; }

/* A word for each page's content, or that it can't be read. */
static inline void show(const char *what, const char *at, unsigned pages) {
    printf("%s:", what);
    catch_faults(1);
    for (volatile unsigned n = 0; n < pages; n++) {
        int fault = sigsetjmp(after_fault, 1);
        if (fault) {
            printf(" %s", fault == SIGSEGV ? "SEGV" : "BUS");
            continue;
        }
        uint64_t hash = 14695981039346656037UL;
        for (unsigned byte = 0; byte < PAGE; byte++)
            hash = (hash ^ (unsigned char)at[(size_t)n * PAGE + byte]) * 1099511628211UL;
        printf(" %lx", hash & 0xffffff);
    }
    catch_faults(0);
    puts("");
}

static inline void show_region(void) { show("region", region, PAGES); }

static inline void told(const char *what, long result) {
    int error = errno;
    printf("%s: %ld", what, result);
    if (result == -1) printf(" (%s)", strerror(error));
    puts("");
}

/* For calls that give an address, which is another in each run. */
static inline void told_place(const char *what, const void *result, const void *wanted) {
    told(what, result == MAP_FAILED ? -1 : wanted ? result == wanted : 1);
}

static inline void try_write(const char *what, char *at) {
    catch_faults(1);
    int fault = sigsetjmp(after_fault, 1);
    if (!fault) ++*(volatile char *)(at + 5);
    catch_faults(0);
    printf("%s: %s\n", what, fault ? "not writable" : "written");
}

/* Runs in a child, whose output comes first. */
static inline void in_child(void (*act)(void)) {
    fflush(stdout);
    pid_t child = fork();
    if (child < 0) FAIL("fork");
    if (child == 0) {
        act();
        fflush(stdout);
        _exit(0);
    }
    int status;
    if (waitpid(child, &status, 0) != child) FAIL("waitpid");
    printf("child: %x\n", status);
}

/* A word of /proc/self/status. */
static inline long status(const char *name) {
    char line[256];
    long value = -1;
    FILE *file = fopen("/proc/self/status", "re");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, name, strlen(name))) value = atol(line + strlen(name));
    if (file) fclose(file);
    return value;
}

/* What mappings of a range are like, joined where they are alike: their protection key, and those flags that
 * a program gives them, but for advice on huge pages, which memory that is merged does not keep. */
static inline void show_flags(const char *what, const char *start, unsigned pages) {
    static const char *const flags[] = {"rd", "wr", "ex", "sh", "lo", "dc", "dd", "wf", "gd", "sr",
                                        "rr", "ac", "nr"};
    uintptr_t first = (uintptr_t)start, last = first + (size_t)pages * PAGE, from = 0, to = 0;
    char line[512], now[256], before[256] = "";
    int key = 0;
    FILE *smaps = fopen("/proc/self/smaps", "re");
    if (!smaps) FAIL("/proc/self/smaps");
    printf("%s:", what);
    while (fgets(line, sizeof line, smaps)) {
        uintptr_t a, b;
        char permissions[8];
        if (sscanf(line, "%lx-%lx %7s", &a, &b, permissions) == 3) {
            from = a > first ? a : first;
            to = b < last ? b : last;
            key = 0;
        } else if (from < to && !strncmp(line, "ProtectionKey:", 14)) {
            key = atoi(line + 14);
        } else if (from < to && !strncmp(line, "VmFlags:", 8)) {
            snprintf(now, sizeof now, key ? " key %d" : "", key);
            for (unsigned n = 0; n < sizeof flags / sizeof *flags; n++) {
                char flag[8];
                snprintf(flag, sizeof flag, " %s", flags[n]);
                if (strstr(line, flag)) strcat(now, flag);
            }
            if (strcmp(now, before)) printf(" from %lu%s;", (from - first) / PAGE, now);
            strcpy(before, now);
        }
    }
    fclose(smaps);
    puts("");
}

static inline int run_case(const struct one_case *cases, size_t count, int argc, char **argv) {
    if (argc < 2) {
        for (size_t n = 0; n < count; n++) puts(cases[n].name);
        return 0;
    }
    /* What hangs is ended. */
    alarm(60);
    region = (char *)map_pages(PAGES + 2) + PAGE;
    for (unsigned n = 0; n < PAGES; n++) fill(page(n), n / 2 + 1);
    offer(region, PAGES);
    wait_merged(region, PAGES, PAGES);
    page(20)[0] = 99;
    page(21)[17] = 98;
    for (size_t n = 0; n < count; n++) {
        if (strcmp(cases[n].name, argv[1])) continue;
        cases[n].run();
        show("after", region, PAGES);
        /* Merging goes on, and what is there stays. */
        usleep(50000);
        show("later", region, PAGES);
        for (unsigned at = 0; at < PAGES; at += 7) try_write("write", page(at));
        show("end", region, PAGES);
        show_flags("flags", region, PAGES);
        return 0;
    }
    FAIL("no case %s", argv[1]);
}
