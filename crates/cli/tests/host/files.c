/* What programs do to file descriptors that they did not open, while other threads use memory that is being
 * merged: the agent must have none among them.
 *
 * usage: files close|put
 *   close: again and again closes all from 3 on, as what becomes a daemon does, and opens files of its own,
 *          which get those numbers. Nobody else may write to them, or read from them.
 *   put:   again and again puts a file of its own at 3 to 15 (`exec 5>file` in a shell).
 * Ends with 0, or with 1 and what was wrong. */
#include "pages.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { PAGES = 3072, FILES = 40, THREADS = 3, CONTENTS = 50, LAST = 63, ROUNDS = 30 };

static char *memory;
static uint8_t content[PAGES];
static atomic_int stop;

static void check(unsigned page) {
    int n = differs(memory + page * PAGE, content[page]);
    if (n >= 0) FAIL("page %u is wrong from word %d on", page, n);
}

static void write_page(unsigned page, unsigned what) {
    fill(memory + page * PAGE, what);
    content[page] = what;
}

static void close_all(void) {
    for (int fd = 3; fd <= LAST; fd++) close(fd);
}

static void rest(void) {
    usleep(10000 + rand() % 20000);
}

/* Files and sockets by turns, where the agent's would have been. */
static void own_files(void) {
    int files[FILES], pairs[FILES][2];
    for (int n = 0; n < FILES; n++) {
        files[n] = n % 2 ? open("/tmp", O_TMPFILE | O_RDWR, 0600) : -1;
        if (n % 2 && files[n] < 0) FAIL("a temporary file");
        if (n % 2 == 0 && socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pairs[n])) FAIL("sockets");
    }
    rest();
    for (int n = 0; n < FILES; n++) {
        struct stat status;
        char byte;
        if (n % 2) {
            if (fstat(files[n], &status)) FAIL("a file of mine is closed");
            if (status.st_size) FAIL("somebody wrote to a file of mine");
            continue;
        }
        for (int side = 0; side < 2; side++)
            if (recv(pairs[n][side], &byte, 1, MSG_DONTWAIT) >= 0 || errno != EAGAIN)
                FAIL("somebody wrote to a socket of mine, or closed it");
    }
}

static void close_and_open(void) {
    close_all();
    rest();
    own_files();
    close_all();
}

static void put_files(void) {
    int fd = open("/dev/null", O_WRONLY);
    for (int to = 3; to < 16; to++)
        if (to != fd && dup2(fd, to) != to) FAIL("dup2");
    rest();
}

static void *use(void *argument) {
    unsigned thread = (uintptr_t)argument, seed = getpid() * 10 + thread;
    unsigned first = thread * (PAGES / THREADS);
    while (!stop) {
        for (int n = 0; n < 300; n++) {
            unsigned page = first + rand_r(&seed) % (PAGES / THREADS);
            check(page);
            if (n % 8 == 0) write_page(page, 1 + rand_r(&seed) % CONTENTS);
        }
        usleep(500);
    }
    return NULL;
}

int main(int argc, char **argv) {
    const char *how = argc > 1 ? argv[1] : "";
    int is_close = !strcmp(how, "close");
    if (!is_close && strcmp(how, "put")) FAIL("usage: files close|put");
    /* What hangs is ended. */
    alarm(60);
    srand(getpid());
    memory = map_pages(PAGES);
    for (unsigned page = 0; page < PAGES; page++) write_page(page, 1 + page % CONTENTS);
    offer(memory, PAGES);
    wait_merged(memory, PAGES, PAGES / 2);
    pthread_t threads[THREADS];
    for (uintptr_t n = 0; n < THREADS; n++)
        if (pthread_create(&threads[n], NULL, use, (void *)n)) FAIL("no thread");
    for (int round = 0; round < ROUNDS; round++)
        if (is_close) close_and_open(); else put_files();
    stop = 1;
    for (unsigned n = 0; n < THREADS; n++) pthread_join(threads[n], NULL);
    wait_merged(memory, PAGES, PAGES / 2);
    /* The agent is there still: these two must not wait for it in vain. */
    pid_t child = fork();
    if (child == 0) _exit(0);
    waitpid(child, NULL, 0);
    if (madvise(memory, PAGES * PAGE, MADV_DONTNEED)) FAIL("MADV_DONTNEED");
    memset(content, 0, sizeof content);
    for (unsigned page = 0; page < PAGES; page++) check(page);
    puts("right");
    return 0;
}
