// Needs nearly all the mappings a program may have, after much of its memory was merged page by page.
#include "client.h"

#define PAGES 20000UL

int main(void) {
    unsigned char *region = anonymous(PAGES);
    for (size_t n = 0; n < PAGES; n++)
        // Neighbours are never in neighbouring frames.
        fill(region + n * PAGE, n * 7919 % 5000 + 1);
    CHECK(madvise(region, PAGES * PAGE, MADV_MERGEABLE) == 0);
    wait_merged(region, PAGES / 2 * PAGE);
    size_t most = 0;
    FILE *limit = fopen("/proc/sys/vm/max_map_count", "r");
    CHECK(limit && fscanf(limit, "%zu", &most) == 1);
    fclose(limit);
    // Every other page of its own protection: a mapping each.
    size_t wanted = most - 2000;
    unsigned char *own = anonymous(wanted);
    for (size_t n = 0; n < wanted; n += 2)
        CHECK(mprotect(own + n * PAGE, PAGE, PROT_READ) == 0);
    for (size_t n = 0; n < PAGES; n++)
        CHECK(holds(region + n * PAGE, n * 7919 % 5000 + 1));
    printf("fine\n");
    return 0;
}
