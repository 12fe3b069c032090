// A program that may have no files any more (RLIMIT_NOFILE), as one in a sandbox: what it does to its memory means what
// it did. Says "right" or "WRONG".
#include "pages.h"
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum { BYTES = 4 << 20 };

static char *filled(void) {
    char *memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(memory, 7, BYTES);
    madvise(memory, BYTES, MADV_MERGEABLE);
    return memory;
}

static int holds(const char *memory, char byte) {
    for (int n = 0; n < BYTES; n++)
        if (memory[n] != byte)
            return 0;
    return 1;
}

int main(void) {
    char *moved = filled(), *dropped = filled(), *advised = filled();
    char *all[] = {moved, dropped, advised};
    for (int n = 0; n < 3; n++)
        wait_merged(all[n], BYTES / PAGE, BYTES / PAGE - 1); // one may be left without a partner
    int self = syscall(SYS_pidfd_open, getpid(), 0);
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_NOFILE, &none);
    struct iovec range = {advised, BYTES};
    // Before Linux 6.13 this advice is refused.
    long done = syscall(SYS_process_madvise, self, &range, 1, MADV_DONTNEED, 0);
    char expected = done == BYTES ? 0 : 7;
    int right = holds(advised, expected);
    right &= madvise(dropped, BYTES, MADV_DONTNEED) == 0 && holds(dropped, 0);
    moved = mremap(moved, BYTES, 2 * BYTES, MREMAP_MAYMOVE);
    right &= moved != MAP_FAILED && holds(moved, 7);
    printf("%s\n", right ? "right" : "WRONG");
    return 0;
}
