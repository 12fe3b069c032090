/* A read from a file by io_uring into a registered buffer, whose pages are pinned from registering on until
 * the ring is closed. For torture.c, whose FAIL is seen here. */
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct ring {
    int fd;
    struct io_uring_params params;
    size_t sq_size, cq_size, entries_size;
    char *sq, *cq;
    struct io_uring_sqe *entries;
};

/* 0 where no ring may be had. */
static int open_ring(struct ring *ring) {
    memset(ring, 0, sizeof *ring);
    ring->fd = (int)syscall(__NR_io_uring_setup, 4, &ring->params);
    if (ring->fd < 0) return 0;
    const struct io_uring_params *params = &ring->params;
    ring->sq_size = params->sq_off.array + params->sq_entries * sizeof(unsigned);
    ring->cq_size = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
    ring->entries_size = params->sq_entries * sizeof *ring->entries;
    enum { READ_WRITE = PROT_READ | PROT_WRITE };
    ring->sq = mmap(0, ring->sq_size, READ_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQ_RING);
    ring->cq = mmap(0, ring->cq_size, READ_WRITE, MAP_SHARED, ring->fd, IORING_OFF_CQ_RING);
    ring->entries = mmap(0, ring->entries_size, READ_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQES);
    if (ring->sq == MAP_FAILED || ring->cq == MAP_FAILED || ring->entries == MAP_FAILED)
        FAIL("io_uring's rings: %s", strerror(errno));
    return 1;
}

static void close_ring(struct ring *ring) {
    munmap(ring->sq, ring->sq_size);
    munmap(ring->cq, ring->cq_size);
    munmap(ring->entries, ring->entries_size);
    close(ring->fd);
}

/* Submits the ring's first entry, and gives its result. */
static int submit(struct ring *ring) {
    *(unsigned *)(ring->sq + ring->params.sq_off.array) = 0;
    atomic_fetch_add((_Atomic unsigned *)(ring->sq + ring->params.sq_off.tail), 1);
    unsigned *head = (unsigned *)(ring->cq + ring->params.cq_off.head);
    _Atomic unsigned *tail = (_Atomic unsigned *)(ring->cq + ring->params.cq_off.tail);
    unsigned submitted = 0;
    /* A signal ends the wait; if something was submitted by the call, that is not said. */
    while (atomic_load(tail) == *head) {
        long took = syscall(__NR_io_uring_enter, ring->fd, 1 - submitted, 1, IORING_ENTER_GETEVENTS, NULL, 0);
        if (took < 0 && errno != EINTR) FAIL("io_uring_enter: %s", strerror(errno));
        if (took > 0) submitted = 1;
    }
    struct io_uring_cqe *all = (struct io_uring_cqe *)(ring->cq + ring->params.cq_off.cqes);
    return all[*head & (ring->params.cq_entries - 1)].res;
}

/* Whether it was done: a machine may allow no ring, and no more memory to be pinned. Between pinning and
 * reading there are so many microseconds. */
static int fixed_read(int file, off_t from, void *at, size_t length, unsigned pause_us, pthread_mutex_t *addresses) {
    struct ring ring;
    struct iovec buffer = {at, length};
    pthread_mutex_lock(addresses);
    int opened = open_ring(&ring);
    pthread_mutex_unlock(addresses);
    if (!opened) return 0;
    int pinned = !syscall(__NR_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buffer, 1);
    if (pinned) {
        usleep(pause_us);
        memset(ring.entries, 0, sizeof *ring.entries);
        ring.entries->opcode = IORING_OP_READ_FIXED;
        ring.entries->fd = file;
        ring.entries->addr = (uintptr_t)at;
        ring.entries->len = (unsigned)length;
        ring.entries->off = (uint64_t)from;
        int got = submit(&ring);
        if (got != (int)length) FAIL("io_uring: %d", got);
    }
    pthread_mutex_lock(addresses);
    close_ring(&ring);
    pthread_mutex_unlock(addresses);
    return pinned;
}
