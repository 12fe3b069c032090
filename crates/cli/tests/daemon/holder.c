/* A program that knows nothing of numerge: holds mergeable memory, and does to it what it is told.
 *
 * usage: holder PAGES FIRST: page n has the content FIRST + n, all over; content 0 is zeros.
 *
 * A line is read, an order, and one is written, the answer:
 *   wrong          how many pages have not the content they should have
 *   write N C      page n gets content C
 *   exec           executes itself anew, with other memory of the same content
 *   end            ends
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

static uint64_t word(uint64_t content, int n) {
    return content == 0 ? 0 : content * 0x9e3779b97f4a7c15u ^ (uint64_t)n;
}

static void fill(uint64_t *page, uint64_t content) {
    for (int n = 0; n < WORDS; n++)
        page[n] = word(content, n);
}

static int holds(const uint64_t *page, uint64_t content) {
    for (int n = 0; n < WORDS; n++)
        if (page[n] != word(content, n))
            return 0;
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    /* No test leaves one behind. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    unsigned long pages = strtoul(argv[1], NULL, 10);
    uint64_t first = strtoull(argv[2], NULL, 10);
    uint64_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t *wanted = malloc(pages * sizeof *wanted);
    if (memory == MAP_FAILED || wanted == NULL)
        return 3;
    /* Without KSM, and nobody in between, it is refused. */
    madvise(memory, pages * PAGE, MADV_MERGEABLE);
    for (unsigned long n = 0; n < pages; n++)
        fill(memory + n * WORDS, wanted[n] = first + n);
    char line[100];
    printf("ready\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        unsigned long page, content, wrong = 0;
        if (strcmp(line, "wrong\n") == 0) {
            for (unsigned long n = 0; n < pages; n++)
                wrong += !holds(memory + n * WORDS, wanted[n]);
            printf("%lu\n", wrong);
        } else if (sscanf(line, "write %lu %lu", &page, &content) == 2 && page < pages) {
            fill(memory + page * WORDS, wanted[page] = content);
            printf("ok\n");
        } else if (strcmp(line, "exec\n") == 0) {
            execv("/proc/self/exe", argv);
            return 4;
        } else {
            break;
        }
        fflush(stdout);
    }
    return 0;
}
