/* Cases of prctl(PR_SET_MEMORY_MERGE): all that a process maps is to be merged, and all that its children map
 * and what they execute. */
#include "cases.h"
#include <spawn.h>
#include <sys/prctl.h>

/* Newer than some C libraries. */
enum { SET_MEMORY_MERGE = 67, GET_MEMORY_MERGE = 68 };

extern char **environ;
static char **arguments;

static void set(int on) { told(on ? "set" : "off", prctl(SET_MEMORY_MERGE, on, 0, 0, 0)); }
static void show_set(const char *what) { told(what, prctl(GET_MEMORY_MERGE, 0, 0, 0, 0)); }

/* Pages nobody has offered, each equal to another. */
static char *some(void) {
    char *at = map_pages(PAGES);
    for (unsigned n = 0; n < PAGES; n++) fill(at + (size_t)n * PAGE, 200 + n / 2);
    return at;
}

/* Mapped from now on, merged, and right. */
static void merges(const char *what) {
    char *at = some();
    wait_merged(at, PAGES, PAGES);
    show(what, at, PAGES);
    munmap(at, (size_t)PAGES * PAGE);
}

/* Mapped from now on, and left alone. */
static void merges_not(const char *what) {
    char *at = some();
    usleep(300000);
    printf("%s: %zu merged\n", what, merged(at, PAGES));
    munmap(at, (size_t)PAGES * PAGE);
}

static void off_at_first(void) {
    show_set("at first");
    merges_not("not set");
}

static void new_memory(void) {
    set(1);
    show_set("set");
    merges("new");
}

static void old_memory(void) {
    char *at = some();
    set(1);
    wait_merged(at, PAGES, PAGES);
    show("old", at, PAGES);
}

static void off_again(void) {
    set(1);
    char *at = some();
    wait_merged(at, PAGES, PAGES);
    set(0);
    show_set("off");
    printf("%zu and %zu merged\n", merged(at, PAGES), merged(region, PAGES));
    show("before", at, PAGES);
    merges_not("off");
    set(0);
    set(1);
    merges("on again");
}

static void arguments_are_checked(void) {
    told("set with more", prctl(SET_MEMORY_MERGE, 1, 1, 0, 0));
    told("and more", prctl(SET_MEMORY_MERGE, 1, 0, 0, 1));
    told("get with one", prctl(GET_MEMORY_MERGE, 1, 0, 0, 0));
    show_set("still");
    told("not only one", prctl(SET_MEMORY_MERGE, 7, 0, 0, 0));
    show_set("set");
}

static void child(void) {
    show_set("child");
    merges("child's");
}

static void off_in_child(void) {
    set(0);
    show_set("child");
    merges_not("child's");
}

static void forked(void) {
    set(1);
    in_child(child);
    in_child(off_in_child);
    show_set("parent");
    merges("parent's");
}

/* This program, with another case. */
static void execute(const char *name) {
    char *all[] = {arguments[0], (char *)name, NULL};
    fflush(stdout);
    execv("/proc/self/exe", all);
    FAIL("execv");
}

static void set_and_execute(void) {
    set(1);
    execute("new_in_executed");
}

static void unset_and_execute(void) {
    set(1);
    set(0);
    execute("off_at_first");
}

static void executed_in_child(void) {
    set(1);
    in_child(unset_and_execute);
    execute("new_in_executed");
}

/* By other ways than execve: these keep pointers to the environment. */
static void spawned(void) {
    set(1);
    char *all[] = {arguments[0], (char *)"new_in_executed", NULL};
    fflush(stdout);
    pid_t pid;
    int status = -1;
    told("spawned", posix_spawn(&pid, "/proc/self/exe", NULL, NULL, all, environ));
    if (waitpid(pid, &status, 0) != pid) FAIL("waitpid");
    printf("%x\n", status);
    pid = vfork();
    if (!pid) {
        execve("/proc/self/exe", all, environ);
        _exit(1);
    }
    if (waitpid(pid, &status, 0) != pid) FAIL("waitpid");
    printf("%x\n", status);
}

int main(int argc, char **argv) {
    static const struct one_case cases[] = {
        {"off_at_first", off_at_first},
        {"new", new_memory},
        {"old", old_memory},
        {"off_again", off_again},
        {"arguments", arguments_are_checked},
        {"fork", forked},
        {"exec", set_and_execute},
        {"exec_off", unset_and_execute},
        {"exec_in_child", executed_in_child},
        {"spawn", spawned},
        /* What others execute, and no case of its own. */
        {"new_in_executed", child},
    };
    arguments = argv;
    return run_case(cases, sizeof cases / sizeof *cases - (argc < 2), argc, argv);
}
