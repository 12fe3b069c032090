// Has memory merged, and does as it is told, a letter a line on standard input:
// m wait until all is merged, f until nothing is, c check the content, w write to half of it,
// d drop a page, k fork a child that checks and maps memory of its own. Answers each with a line.
#include "client.h"

#define PAGES 64UL

static unsigned char *region;
static uint64_t content[PAGES];

static const char *check(void) {
    for (size_t n = 0; n < PAGES; n++)
        if (!holds(region + n * PAGE, content[n]))
            return "changed";
    return "fine";
}

static const char *in_child(void) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        // The child's own memory is for its own connection.
        unsigned char *own = anonymous(PAGES);
        for (size_t n = 0; n < PAGES; n++)
            fill(own + n * PAGE, n + 1);
        CHECK(madvise(own, PAGES * PAGE, MADV_MERGEABLE) == 0);
        wait_merged(own, PAGES * PAGE);
        for (size_t n = 0; n < PAGES; n++)
            CHECK(holds(own + n * PAGE, n + 1));
        CHECK(madvise(region, PAGE, MADV_DONTNEED) == 0);
        content[0] = 0;
        _exit(strcmp(check(), "fine") ? 1 : 0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return status == 0 ? "fine" : "child failed";
}

int main(void) {
    region = anonymous(PAGES);
    for (size_t n = 0; n < PAGES; n++)
        fill(region + n * PAGE, content[n] = n % 50 + 1);
    CHECK(madvise(region, PAGES * PAGE, MADV_MERGEABLE) == 0);
    char line[16];
    while (fgets(line, sizeof line, stdin)) {
        const char *said = "fine";
        switch (line[0]) {
        case 'm':
            wait_merged(region, PAGES * PAGE);
            break;
        case 'f':
            for (int tries = 0; tries < 20000 && in_frames(region, PAGES * PAGE); tries++)
                usleep(1000);
            said = in_frames(region, PAGES * PAGE) ? "still merged" : "fine";
            break;
        case 'w':
            for (size_t n = 0; n < PAGES; n += 2)
                fill(region + n * PAGE, ++content[n]);
            break;
        case 'd':
            CHECK(madvise(region + 7 * PAGE, PAGE, MADV_DONTNEED) == 0);
            content[7] = 0;
            break;
        case 'k':
            said = in_child();
            break;
        case 'c':
            break;
        }
        printf("%s\n", strcmp(said, "fine") ? said : check());
        fflush(stdout);
    }
    return 0;
}
