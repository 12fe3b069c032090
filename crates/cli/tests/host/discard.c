/* A program that drops more single pages than an engine that does not listen can be told of, and fills and merges
 * them again. Goes on when it is told to. */
#include "pages.h"

enum { PAGES = 12000, ROUNDS = 2 };

static void step(const char *done) {
    puts(done);
    fflush(stdout);
    if (getchar() == EOF) FAIL("nobody asks");
}

int main(void) {
    char *memory = map_pages(PAGES);
    for (unsigned n = 0; n < PAGES; n++) fill(memory + (size_t)n * PAGE, 1 + n / 2);
    offer(memory, PAGES);
    wait_merged(memory, PAGES, PAGES);
    step("merged");
    for (unsigned n = 0; n < PAGES; n += 2)
        if (madvise(memory + (size_t)n * PAGE, PAGE, MADV_DONTNEED)) FAIL("MADV_DONTNEED");
    step("dropped");
    for (unsigned n = 0; n < PAGES; n++)
        if (differs(memory + (size_t)n * PAGE, n % 2 ? 1 + n / 2 : 0) >= 0) FAIL("page %u is wrong", n);
    for (unsigned round = 1; round <= ROUNDS; round++) {
        for (unsigned n = 0; n < PAGES; n++) fill(memory + (size_t)n * PAGE, 1 + n / 2 + round * PAGES);
        wait_merged(memory, PAGES, PAGES * 9 / 10);
    }
    step("again");
    for (unsigned n = 0; n < PAGES; n++)
        if (differs(memory + (size_t)n * PAGE, 1 + n / 2 + ROUNDS * PAGES) >= 0) FAIL("page %u is wrong", n);
    puts("right");
    return 0;
}
