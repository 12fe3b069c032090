// What an io_uring reads into a registered buffer, which was merged again since, if that was possible. The ring is no
// file in the first thread's table: "closed", it was registered (IORING_REGISTER_RING_FDS) and its descriptor
// closed; "thread", a thread has a table of files of its own. Says "right", "WRONG" or "SKIPPED".
#include "pages.h"
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/uio.h>
enum { PAGES = 1024, READ = 64 * PAGE };
static char *m; static int pipes[2];
static void *use(void *mode) {
    int own = !strcmp(mode, "thread");
    if (own && unshare(CLONE_FILES)) { perror("unshare"); exit(2); }
    struct io_uring_params p = {0};
    int ring = syscall(SYS_io_uring_setup, 4, &p);
    if (ring < 0) { printf("SKIPPED: no io_uring\n"); exit(0); }
    char *sq = mmap(0, p.sq_off.array + p.sq_entries * 4, 3, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *sqe = mmap(0, 4 * sizeof *sqe, 3, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
    wait_merged(m, PAGES, PAGES - 1); /* one may be left without a partner */
    struct iovec buffer = {m, READ};
    if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1)) { perror("IORING_REGISTER_BUFFERS"); exit(2); }
    int enter = ring, flags = IORING_ENTER_GETEVENTS;
    if (!own) {
        struct io_uring_rsrc_update r = {.offset = -1U, .data = ring};
        if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_RING_FDS, &r, 1) != 1) { printf("SKIPPED: rings can't be registered\n"); exit(0); }
        close(ring); enter = r.offset; flags |= IORING_ENTER_REGISTERED_RING;
    }
    for (int i = 0; i < READ; i += PAGE) m[i] = 7; /* as it was */
    sleep(2); /* merged again by now, if that is possible */
    char in[PAGE]; memset(in, 'R', PAGE); (void)!write(pipes[1], in, PAGE);
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = IORING_OP_READ_FIXED; sqe->fd = pipes[0]; sqe->addr = (unsigned long)m; sqe->len = PAGE; sqe->off = -1;
    *(unsigned *)(sq + p.sq_off.array) = 0;
    atomic_store((_Atomic unsigned *)(sq + p.sq_off.tail), 1);
    if (syscall(SYS_io_uring_enter, enter, 1, 1, flags, 0, 0) != 1) { perror("enter"); exit(2); }
    return 0;
}
int main(int argc, char **argv) {
    if (argc < 2 || pipe(pipes)) return 2;
    m = mmap(0, PAGES * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(m, 7, PAGES * PAGE);
    madvise(m, PAGES * PAGE, MADV_MERGEABLE);
    pthread_t t; pthread_create(&t, 0, use, argv[1]); pthread_join(t, 0);
    int bad = 0;
    for (int i = 0; i < PAGE; i++) bad += m[i] != 'R';
    printf("%s\n", bad ? "WRONG: what was read is not there" : "right");
    return 0;
}
