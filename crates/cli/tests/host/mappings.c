/* Cases of calls that change what is mapped, and of forks. */
#include "cases.h"
#include <alloca.h>
#include <sched.h>

static void unmap_middle(void) {
    told("munmap", munmap(page(8), 8 * PAGE));
    show_region();
    char *again = mmap(page(8), 8 * PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    told_place("again", again, page(8));
}

static void map_over(void) {
    int fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    told_place("over", mmap(page(8), 8 * PAGE, PROT_READ | PROT_WRITE, fixed, -1, 0), page(8));
    fill(page(9), 1234);
    int noreplace = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    told_place("not over", mmap(page(30), PAGE, PROT_READ, noreplace, -1, 0), page(30));
    int fd = open("/proc/self/exe", O_RDONLY);
    char *file = mmap(page(40), 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
    told_place("file over", file, page(40));
    /* Its content is another in each build. */
    told("an executable", !memcmp(file, "\177ELF", 4));
    fill(file, 8);
    fill(file + PAGE, 9);
    told_place("refused", mmap(page(50), PAGE, PROT_READ, fixed & ~MAP_PRIVATE, -1, 0), page(50));
    close(fd);
}

static void grow(void) {
    char *to = mremap(region, PAGES * PAGE, 2 * PAGES * PAGE, MREMAP_MAYMOVE);
    told_place("grown", to, NULL);
    show("grown", to, 2 * PAGES);
    region = to;
}

static void grow_in_place(void) {
    told("munmap", munmap(page(PAGES), PAGE));
    told_place("free behind", mmap(page(PAGES), PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS |
                                   MAP_FIXED, -1, 0), page(PAGES));
    told_place("no room", mremap(region, PAGES * PAGE, (PAGES + 1) * PAGE, 0), region);
    told("munmap", munmap(page(PAGES), PAGE));
    told_place("room", mremap(region, PAGES * PAGE, (PAGES + 1) * PAGE, 0), region);
    show("behind", page(PAGES), 1);
}

static void shrink(void) {
    told_place("shrunk", mremap(region, PAGES * PAGE, 10 * PAGE, 0), region);
}

static void move_fixed(void) {
    char *to = map_pages(PAGES);
    int fixed = MREMAP_MAYMOVE | MREMAP_FIXED;
    told_place("moved", mremap(region, PAGES * PAGE, PAGES * PAGE, fixed, to), to);
    show("left", region, PAGES);
    region = to;
}

static void move_onto(void) {
    char *from = map_pages(8);
    fill(from, 4321);
    int fixed = MREMAP_MAYMOVE | MREMAP_FIXED;
    told_place("onto", mremap(from, 8 * PAGE, 8 * PAGE, fixed, page(8)), page(8));
    told_place("itself", mremap(region, 8 * PAGE, 8 * PAGE, fixed, page(4)), page(4));
}

static void move_part(void) {
    char *to = mremap(page(16), 16 * PAGE, 20 * PAGE, MREMAP_MAYMOVE);
    told_place("part", to, NULL);
    show("part", to, 20);
    try_write("part", to);
}

static void move_and_keep(void) {
    int keep = MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
    char *to = mremap(region, PAGES * PAGE, PAGES * PAGE, keep);
    told_place("moved", to, NULL);
    show("moved", to, PAGES);
    try_write("moved", to);
}

static void protect(void) {
    told("read", mprotect(page(8), 8 * PAGE, PROT_READ));
    show_flags("read", region, PAGES);
    try_write("read only", page(9));
    told("none", mprotect(page(30), 8 * PAGE, PROT_NONE));
    show_region();
    /* By the kernel it can't be read or written either. */
    int fds[2];
    if (pipe(fds)) FAIL("pipe");
    told("from none", write(fds[1], page(31), 10));
    told("from read", write(fds[1], page(9), 10));
    told("to read", read(fds[0], page(9), 10));
    told("drop", madvise(page(32), 4 * PAGE, MADV_DONTNEED));
    told("back", mprotect(region, PAGES * PAGE, PROT_READ | PROT_WRITE));
    try_write("back", page(9));
    told("executable", mprotect(page(50), 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC));
    show_flags("executable", region, PAGES);
    told("hole", munmap(page(60), PAGE));
    told("over the hole", mprotect(page(58), 4 * PAGE, PROT_READ));
    try_write("before it", page(59));
    told("back", mprotect(page(58), 2 * PAGE, PROT_READ | PROT_WRITE));
}

static void protection_key(void) {
    int key = pkey_alloc(0, 0);
    if (key < 0) {
        /* Not left out of the tests: crates/cli/tests/numa/keys.rs */
        puts("no protection keys here: tools/numa tries them in a guest");
        told("default", pkey_mprotect(page(8), 8 * PAGE, PROT_READ, -1));
        try_write("read only", page(9));
        return;
    }
    told("key", pkey_mprotect(page(8), 8 * PAGE, PROT_READ | PROT_WRITE, key));
    show_flags("key", region, PAGES);
    /* Equal to each other, and to be merged if these pages still were. */
    for (unsigned n = 8; n < 16; n++) fill(page(n), 500);
    usleep(500000);
    show_flags("key, later", region, PAGES);
    told("set", pkey_set(key, PKEY_DISABLE_WRITE));
    show_region();
    for (unsigned n = 7; n < 17; n++) try_write("may not write", page(n));
    told("set", pkey_set(key, PKEY_DISABLE_ACCESS));
    show_region();
    told("set", pkey_set(key, 0));
    try_write("may", page(9));
}

static char *signal_stack;

static void on_own_stack(int number) {
    char here;
    told("on its stack", &here > signal_stack && &here < signal_stack + 16 * PAGE);
    siglongjmp(after_fault, number);
}

/* The kernel puts a signal's frame into merged memory, and the handler jumps out of it. */
static void stack_of_signals(void) {
    signal_stack = page(32);
    stack_t own = {.ss_sp = signal_stack, .ss_size = 16 * PAGE};
    told("sigaltstack", sigaltstack(&own, NULL));
    struct sigaction action = {.sa_handler = on_own_stack, .sa_flags = SA_ONSTACK};
    sigaction(SIGSEGV, &action, NULL);
    told("no access", mprotect(page(60), PAGE, PROT_NONE));
    for (volatile int n = 0; n < 3; n++) {
        usleep(30000);
        if (!sigsetjmp(after_fault, 1)) *(volatile char *)page(60) = 1;
    }
    told("access", mprotect(page(60), PAGE, PROT_READ | PROT_WRITE));
    own.ss_flags = SS_DISABLE;
    told("none", sigaltstack(&own, NULL));
    /* What is left there is another in each run. */
    for (unsigned n = 32; n < 48; n++) fill(page(n), 3);
}

/* A stack that grows down towards merged memory, until it would be too near. */
static void stack_grows(void) {
    enum { ROOM = 1024 };
    char *room = map_pages(ROOM);
    told("munmap", munmap(room + 16 * PAGE, (ROOM - 16) * PAGE));
    for (unsigned n = 0; n < 16; n++) fill(room + n * PAGE, 1 + n / 2);
    offer(room, 16);
    wait_merged(room, 16, 16);
    char *top = room + (ROOM - 4) * PAGE;
    int down = MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE;
    told_place("stack", mmap(top, 4 * PAGE, PROT_READ | PROT_WRITE, down, -1, 0), top);
    catch_faults(1);
    volatile unsigned grown = 0;
    if (!sigsetjmp(after_fault, 1))
        while (grown < ROOM) {
            *(volatile char *)(top - grown * PAGE) = 1;
            grown++;
        }
    catch_faults(0);
    printf("grew by %u\n", grown);
    show("room", room, 16);
}

static void own_stack_and_break(void) {
    char *end = sbrk(64 * PAGE);
    char *on_stack = alloca(64 * PAGE);
    for (unsigned n = 0; n < 64; n++) {
        fill(end + n * PAGE, 5);
        fill(on_stack + n * PAGE, 5);
    }
    told("offered", madvise((void *)((uintptr_t)end & -PAGE), PAGE, MADV_NORMAL));
    usleep(50000);
    show("break", end, 64);
    show("stack", on_stack, 64);
}

static void child_writes(void) {
    show_region();
    for (unsigned n = 0; n < PAGES; n += 3) fill(page(n), 500 + n);
    usleep(20000);
    show_region();
}

static void child_drops(void) {
    page(9)[0] = 77;
    told("drop", madvise(page(4), 36 * PAGE, MADV_DONTNEED));
    show_region();
    told("protect", mprotect(region, 8 * PAGE, PROT_READ));
    told("drop", madvise(region, 6 * PAGE, MADV_DONTNEED));
    try_write("protected", page(1));
    show_region();
    told("munmap", munmap(page(50), 4 * PAGE));
    show_region();
}

static void child_of_child(void) {
    in_child(child_drops);
    in_child(child_writes);
    show_region();
}

static void child_offers(void) {
    for (unsigned n = 0; n < PAGES; n++) fill(page(n), 900 + n / 4);
    offer(region, PAGES);
    usleep(200000);
    show_region();
    in_child(child_drops);
}

static void child_moves(void) {
    grow();
    try_write("moved", page(0));
}

static void fork_writes(void) { in_child(child_writes); }
static void fork_drops(void) { in_child(child_drops); }
static void fork_forks(void) { in_child(child_of_child); }
static void fork_offers(void) { in_child(child_offers); }
static void fork_moves(void) { in_child(child_moves); }

/* The child must not see what its parent writes, and the parent not that the child has ended. */
static void parent_writes(void) {
    int go[2];
    if (pipe(go)) FAIL("pipe");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        if (read(go[0], &byte, 1) != 1) FAIL("read");
        show("child", region, PAGES);
        fflush(stdout);
        _exit(0);
    }
    for (unsigned n = 0; n < PAGES; n += 2) fill(page(n), 600 + n);
    told("drop", madvise(page(40), 8 * PAGE, MADV_DONTNEED));
    usleep(100000);
    if (write(go[1], "", 1) != 1) FAIL("write");
    told("waited", waitpid(child, NULL, 0) == child);
    show_region();
}

static void vforked(void) {
    pid_t child = vfork();
    if (child == 0) {
        /* In this memory. */
        page(3)[7] = 42;
        execl("/bin/true", "true", NULL);
        _exit(1);
    }
    int status;
    if (waitpid(child, &status, 0) != child) FAIL("waitpid");
    printf("true: %x\n", status);
}

int main(int argc, char **argv) {
    static const struct one_case cases[] = {
        {"unmap_middle", unmap_middle},
        {"map_over", map_over},
        {"grow", grow},
        {"grow_in_place", grow_in_place},
        {"shrink", shrink},
        {"move_fixed", move_fixed},
        {"move_onto", move_onto},
        {"move_part", move_part},
        {"move_and_keep", move_and_keep},
        {"protect", protect},
        {"protection_key", protection_key},
        {"stack_of_signals", stack_of_signals},
        {"stack_grows", stack_grows},
        {"own_stack_and_break", own_stack_and_break},
        {"fork_writes", fork_writes},
        {"fork_drops", fork_drops},
        {"fork_forks", fork_forks},
        {"fork_offers", fork_offers},
        {"fork_moves", fork_moves},
        {"parent_writes", parent_writes},
        {"vfork", vforked},
    };
    return run_case(cases, sizeof cases / sizeof *cases, argc, argv);
}
