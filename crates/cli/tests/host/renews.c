/* A program that knows nothing of numerge: maps its mergeable memory anew, piece by piece, so that there is
 * always something to merge, and checks every byte all the while.
 *
 * usage: renews STATE: a file of zeros that others read what it does from; it ends when they write there */
#include "pages.h"
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>

enum { PIECES = 12, PIECE = 64, CONTENTS = 24 };

/* Known to the test. */
struct state {
    _Atomic uint64_t end, pid, rounds;
    /* Pages that were merged when their piece was given up. */
    _Atomic uint64_t merged;
    /* Where each piece is; 0 while not all of it is filled. */
    _Atomic uint64_t start[PIECES];
};

static char *memory[PIECES];
static uint64_t first[PIECES];

static void check(unsigned piece) {
    for (unsigned n = 0; n < PIECE; n++) {
        const char *page = memory[piece] + (size_t)n * PAGE;
        int wrong = differs(page, 1 + (first[piece] + n) % CONTENTS);
        if (wrong >= 0) FAIL("piece %u, page %u at %p: word %d is wrong", piece, n, (const void *)page, wrong);
    }
}

static void renew(struct state *state, unsigned piece, uint64_t content) {
    state->start[piece] = 0;
    if (memory[piece] && munmap(memory[piece], (size_t)PIECE * PAGE)) FAIL("munmap");
    memory[piece] = map_pages(PIECE);
    offer(memory[piece], PIECE);
    first[piece] = content;
    for (unsigned n = 0; n < PIECE; n++) fill(memory[piece] + (size_t)n * PAGE, 1 + (content + n) % CONTENTS);
    state->start[piece] = (uintptr_t)memory[piece];
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    /* No test leaves one behind. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int file = open(argv[1], O_RDWR | O_CLOEXEC);
    if (file < 0) FAIL("%s", argv[1]);
    struct state *state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (state == MAP_FAILED) FAIL("%s", argv[1]);
    for (unsigned piece = 0; piece < PIECES; piece++) renew(state, piece, piece);
    state->pid = (uint64_t)getpid();
    while (!state->end) {
        unsigned piece = state->rounds++ % PIECES;
        check(piece);
        check((unsigned)state->merged % PIECES);
        state->merged += merged(memory[piece], PIECE);
        renew(state, piece, state->rounds);
        /* Merged is only what was looked at twice. */
        usleep(500);
    }
    for (unsigned n = 0; n < PIECES; n++) check(n);
    return 0;
}
