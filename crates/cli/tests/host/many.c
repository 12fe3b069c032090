/* A program that wants nearly all mappings the kernel gives it, beside much memory that is merged wherever that
 * takes a mapping of its own.
 *
 * usage: many first|last   whether it makes its mappings before it fills its memory, or when that is merged */
#include "pages.h"

/* Each other page is equal to one elsewhere. */
enum { PAGES = 60000, EVERY = 2, KINDS = PAGES / EVERY / 2 };
/* What of the kernel's mappings is left for the program's code, stacks and the like. */
enum { LEFT = 5500 };

static char *memory;
static char **own;
static size_t owned;

static uint64_t content(unsigned n, uint64_t version) {
    if (n % EVERY == 0) return 1 + n / EVERY % KINDS + version * PAGES;
    return 1000000 + n + version * PAGES;
}

static size_t limit(void) {
    FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
    size_t most;
    if (!file || fscanf(file, "%zu", &most) != 1) FAIL("max_map_count");
    fclose(file);
    return most;
}

static size_t mappings(void) {
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    char text[4096];
    size_t lines = 0;
    if (fd < 0) FAIL("/proc/self/maps");
    for (ssize_t len; (len = read(fd, text, sizeof text)) != 0;) {
        if (len < 0) FAIL("/proc/self/maps");
        for (ssize_t n = 0; n < len; n++) lines += text[n] == '\n';
    }
    close(fd);
    return lines;
}

/* Of one page each, and none like its neighbours, so that the kernel joins none. */
static void make_own(size_t wanted) {
    own = malloc(wanted * sizeof *own);
    if (!own) FAIL("malloc");
    for (owned = 0; owned < wanted; owned++) {
        int protection = owned % 2 ? PROT_READ : PROT_READ | PROT_WRITE;
        char *at = mmap(NULL, PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) FAIL("mapping %zu of %zu, %zu in all", owned, wanted, mappings());
        if (owned % 2 == 0) fill(at, owned);
        own[owned] = at;
    }
}

static void unmake_own(void) {
    for (size_t n = 0; n < owned; n++) {
        if (differs(own[n], n % 2 ? 0 : n) >= 0) FAIL("mapping %zu is wrong", n);
        if (munmap(own[n], PAGE)) FAIL("munmap");
    }
    free(own);
}

static void fill_memory(uint64_t version, unsigned every) {
    for (unsigned n = 0; n < PAGES; n += every) fill(memory + (size_t)n * PAGE, content(n, version));
}

static void check_memory(uint64_t version, uint64_t rewritten, unsigned every) {
    for (unsigned n = 0; n < PAGES; n++) {
        uint64_t now = content(n, n % every ? version : rewritten);
        if (differs(memory + (size_t)n * PAGE, now) >= 0) FAIL("page %u is wrong", n);
    }
}

/* Merged is what half of all mappings are enough for, and never more. */
static void merge(size_t wanted) {
    size_t most = 0, now, pages = 0;
    for (int tries = 0; getenv("NUMERGE_SOCKET") && pages < wanted; tries++) {
        if (tries == 1000) FAIL("%zu of %zu pages merged, %zu mappings", pages, wanted, mappings());
        usleep(50000);
        if ((now = mappings()) > most) most = now;
        if (tries % 4 == 0) pages = merged(memory, PAGES);
    }
    /* More may be under way. */
    for (int n = 0; n < 4; n++) {
        usleep(50000);
        if ((now = mappings()) > most) most = now;
    }
    if (most > limit() / 2 + limit() / 100) FAIL("%zu mappings", most);
    fprintf(stderr, "at most %zu mappings, %zu pages merged\n", most, merged(memory, PAGES));
}

int main(int argc, char **argv) {
    if (argc != 2) FAIL("usage: many first|last");
    int is_first = !strcmp(argv[1], "first");
    size_t wanted = limit() - LEFT;
    size_t mergeable = limit() / 5;
    memory = map_pages(PAGES);
    if (is_first) {
        make_own(wanted);
        fill_memory(0, 1);
        /* For the engine to do what it can. */
        usleep(500000);
        fprintf(stderr, "%zu mappings, %zu pages merged\n", mappings(), merged(memory, PAGES));
    } else {
        fill_memory(0, 1);
        merge(mergeable);
        make_own(wanted);
        fprintf(stderr, "%zu mappings, %zu pages merged\n", mappings(), merged(memory, PAGES));
    }
    check_memory(0, 0, 1);
    fill_memory(1, 7);
    check_memory(0, 1, 7);
    unmake_own();
    /* Then there are mappings again. */
    merge(mergeable / 4);
    check_memory(0, 1, 7);
    fill_memory(2, 1);
    check_memory(2, 2, 1);
    puts("right");
    return 0;
}
