/* What looks like a program of Go's, or loads a library that does, as a build with cgo.
 *
 * usage: go [LIBRARY]
 * Maps equal pages; once they are merged, which it says, or a minute later (as Go's, 2 s), loads LIBRARY and waits
 * until they are not merged any more, or a minute. Ends with 7 if all of them are right. */
#include "pages.h"
#include <dlfcn.h>

#ifdef GO
__attribute__((used, section(".go.buildinfo"))) static char information[32] = "\xff Go buildinf:";
enum { MERGED_AFTER = 100 };
#else
enum { MERGED_AFTER = 3000 };
#endif

#ifdef LIBRARY
int loaded;
#else
enum { PAGES = 512, GOOD = 7 };

/* Pages that are the program's own. */
static size_t own_pages(const char *memory) {
    size_t found = 0;
    for (size_t n = 0; n < PAGES; n++) {
        uint64_t entry;
        int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        off_t at = (off_t)((uintptr_t)memory / PAGE + n) * (off_t)sizeof entry;
        if (fd < 0 || pread(fd, &entry, sizeof entry, at) != sizeof entry) FAIL("pagemap");
        close(fd);
        /* There, and of no file. */
        found += entry >> 63 && !(entry >> 61 & 1);
    }
    return found;
}

int main(int argc, char **argv) {
    char *memory = map_pages(PAGES);
    for (size_t n = 0; n < PAGES; n++) fill(memory + n * PAGE, 1 + n % 4);
    for (int n = 0; n < MERGED_AFTER && own_pages(memory); n++) usleep(20000);
    if (!own_pages(memory)) puts("merged");
    if (argc > 1) {
        if (!dlopen(argv[1], RTLD_NOW)) FAIL("%s", dlerror());
        /* A reason to look. */
        map_pages(PAGES);
        for (int n = 0; n < 3000 && own_pages(memory) < PAGES; n++) usleep(20000);
        if (own_pages(memory) < PAGES) FAIL("merged still");
    }
    for (size_t n = 0; n < PAGES; n++)
        if (differs(memory + n * PAGE, 1 + n % 4) >= 0) FAIL("page %zu is wrong", n);
    return GOOD;
}
#endif
