/* A program of which several copies run: each holds pages every one of which is equal to another of its own
 * and to two of each other copy's, until all of them have them merged.
 *
 * usage: PROGRAM DIRECTORY COPIES: where each puts a file when its memory is merged */
#include "pages.h"
#include <dirent.h>
#include <signal.h>
#include <sys/prctl.h>

enum { PAGES = 400 };

static unsigned files_in(const char *path) {
    DIR *directory = opendir(path);
    unsigned found = 0;
    if (!directory) FAIL("%s", path);
    for (struct dirent *entry; (entry = readdir(directory));) found += entry->d_name[0] != '.';
    closedir(directory);
    return found;
}

int main(int argc, char **argv) {
    if (argc != 3) FAIL("usage");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    /* What hangs is ended. */
    alarm(120);
    char *memory = map_pages(PAGES), name[4096];
    for (unsigned n = 0; n < PAGES; n++) fill(memory + (size_t)n * PAGE, n / 2 + 1);
    offer(memory, PAGES);
    wait_merged(memory, PAGES, PAGES);
    snprintf(name, sizeof name, "%s/%d", argv[1], (int)getpid());
    close(open(name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    while (files_in(argv[1]) < (unsigned)atoi(argv[2])) usleep(1000);
    /* Some looks of who takes down what is saved. */
    usleep(500000);
    for (unsigned n = 0; n < PAGES; n++)
        if (differs(memory + (size_t)n * PAGE, n / 2 + 1) >= 0) FAIL("page %u changed", n);
    return 0;
}
