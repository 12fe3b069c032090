/* Cases of what others write to memory and read from it: the kernel for system calls, and other processes. */
#include "cases.h"
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>

static uint64_t content[4 * WORDS];

static void prepare(unsigned what) {
    for (unsigned n = 0; n < 4; n++) fill(content + n * WORDS, what + n);
}

/* A file of four pages of content. */
static int a_file(unsigned what) {
    int fd = memfd_create("content", MFD_CLOEXEC);
    prepare(what);
    if (fd < 0 || write(fd, content, sizeof content) != sizeof content) FAIL("a file");
    return fd;
}

static void reads(void) {
    int fd = a_file(200), sockets[2], pipes[2];
    told("read", read(fd, page(3), PAGE));
    told("pread", pread(fd, page(5) + 100, 2 * PAGE, 50));
    struct iovec parts[] = {{page(10), 100}, {page(12) + 4000, 200}, {page(20), 3 * PAGE}};
    told("preadv", preadv(fd, parts, 3, 0));
    show_region();
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) || pipe(pipes)) FAIL("sockets");
    told("send", send(sockets[0], page(40), 2 * PAGE, 0));
    told("recv", recv(sockets[1], page(30), 2 * PAGE, MSG_WAITALL));
    told("write", write(pipes[1], page(20), 2 * PAGE));
    told("readv", readv(pipes[0], parts, 3));
    show_region();
    told("too little", read(fd, page(PAGES - 1) + 4000, 8 * PAGE));
    close(fd);
}

static void own_mem(void) {
    int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    prepare(300);
    told("write", pwrite(fd, content, 2 * PAGE, (uintptr_t)page(8) + 77));
    told("mprotect", mprotect(page(30), 4 * PAGE, PROT_READ));
    told("read only", pwrite(fd, content, PAGE, (uintptr_t)page(31)));
    told("read", pread(fd, content, PAGE, (uintptr_t)page(31)));
    told("mprotect", mprotect(page(30), 4 * PAGE, PROT_READ | PROT_WRITE));
    close(fd);
}

/* By another process, which this one waits for. */
static void by_other(void (*act)(pid_t)) {
    int done;
    pid_t parent = getpid();
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        act(parent);
        fflush(stdout);
        _exit(0);
    }
    prctl(PR_SET_PTRACER, child, 0, 0, 0);
    while (waitpid(child, &done, 0) < 0)
        if (errno != EINTR) FAIL("waitpid");
    printf("other: %x\n", done);
    show_region();
}

static void other_writes(pid_t parent) {
    prepare(400);
    struct iovec local = {content, 3 * PAGE}, remote = {page(9) + 8, 3 * PAGE};
    told("writev", process_vm_writev(parent, &local, 1, &remote, 1, 0));
    remote.iov_base = page(20);
    told("readv", process_vm_readv(parent, &local, 1, &remote, 1, 0));
    show("read", (char *)content, 3);
    remote.iov_base = page(PAGES + 1);
    told("beyond", process_vm_readv(parent, &local, 1, &remote, 1, 0));
}

static void debugger(pid_t parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    /* The parent lets this process do it a moment after it was made. */
    long attached = -1;
    for (int tries = 0; attached && tries < 1000; tries++) {
        attached = ptrace(PTRACE_ATTACH, parent, NULL, NULL);
        usleep(1000);
    }
    told("attach", attached);
    int status;
    told("stopped", waitpid(parent, &status, __WALL) == parent);
    told("poke", ptrace(PTRACE_POKEDATA, parent, page(9) + 16, 0x1234567));
    told("peek", ptrace(PTRACE_PEEKDATA, parent, page(9) + 16, NULL));
    told("poke", ptrace(PTRACE_POKEDATA, parent, page(31), 0x7654321));
    told("detach", ptrace(PTRACE_DETACH, parent, NULL, NULL));
}

static void process_vm(void) { by_other(other_writes); }
static void traced(void) { by_other(debugger); }

/* What is in a pipe stays as it is when the program's pages, and the frames they were mapped to, are
 * somebody else's by the time it is read. */
static void spliced(void) {
    int fds[2];
    if (pipe(fds)) FAIL("pipe");
    struct iovec some = {page(4), 8 * PAGE};
    told("vmsplice", vmsplice(fds[1], &some, 1, 0));
    told("drop", madvise(region, PAGES * PAGE, MADV_DONTNEED));
    for (unsigned round = 0; round < 4; round++) {
        for (unsigned n = 0; n < PAGES; n++) fill(page(n), 700 + 100 * round + n / 2);
        wait_merged(region, PAGES, PAGES);
    }
    int file = memfd_create("out", MFD_CLOEXEC), null = open("/dev/null", O_WRONLY);
    told("splice", splice(fds[0], NULL, file, NULL, 6 * PAGE, 0));
    told("splice", splice(fds[0], NULL, null, NULL, PAGE, 0));
    char rest[PAGE];
    told("read", read(fds[0], rest, PAGE));
    show("rest", rest, 1);
    char *out = mmap(NULL, 6 * PAGE, PROT_READ, MAP_SHARED, file, 0);
    show("out", out, 6);
    some = (struct iovec){page(20), 2 * PAGE};
    told("vmsplice", vmsplice(fds[1], &some, 1, SPLICE_F_GIFT));
    told("read", read(fds[0], page(40), 2 * PAGE));
}

/* An io_uring of four entries. */
struct ring {
    int fd;
    char *rings;
    struct io_uring_sqe *entries;
    struct io_uring_params parameters;
};

static int open_ring(struct ring *ring) {
    memset(ring, 0, sizeof *ring);
    ring->fd = (int)syscall(SYS_io_uring_setup, 4, &ring->parameters);
    if (ring->fd < 0) {
        puts("SKIPPED: this machine has no io_uring");
        return 0;
    }
    int shared = MAP_SHARED | MAP_POPULATE, usable = PROT_READ | PROT_WRITE;
    ring->rings = mmap(NULL, 2 * PAGE, usable, shared, ring->fd, IORING_OFF_SQ_RING);
    ring->entries = mmap(NULL, PAGE, usable, shared, ring->fd, IORING_OFF_SQES);
    if (ring->rings == MAP_FAILED || (void *)ring->entries == MAP_FAILED) FAIL("mapping a ring");
    return 1;
}

static int through_ring(struct ring *ring, struct io_uring_sqe entry) {
    const struct io_sqring_offsets *sq = &ring->parameters.sq_off;
    const struct io_cqring_offsets *cq = &ring->parameters.cq_off;
    unsigned *tail = (unsigned *)(ring->rings + sq->tail), *array = (unsigned *)(ring->rings + sq->array);
    unsigned *head = (unsigned *)(ring->rings + cq->head);
    unsigned at = *tail & 3;
    ring->entries[at] = entry;
    array[at] = at;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
        FAIL("io_uring_enter");
    unsigned mask = *(unsigned *)(ring->rings + cq->ring_mask);
    struct io_uring_cqe *done = (struct io_uring_cqe *)(ring->rings + cq->cqes) + (*head & mask);
    int result = done->res;
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return result;
}

static void uring(void) {
    struct ring ring;
    if (!open_ring(&ring)) return;
    int fd = a_file(1000);
    struct io_uring_sqe entry = {.opcode = IORING_OP_READ, .fd = fd};
    entry.addr = (uintptr_t)page(8);
    entry.len = 3 * PAGE;
    told("read", through_ring(&ring, entry));
    show_region();
    struct iovec fixed = {page(16), 16 * PAGE};
    told("register", syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &fixed, 1));
    /* Merging goes on beside the pages that are pinned now. */
    for (unsigned n = 0; n < PAGES; n += 5) fill(page(n), 3);
    usleep(100000);
    entry.opcode = IORING_OP_READ_FIXED;
    entry.addr = (uintptr_t)page(20);
    told("fixed", through_ring(&ring, entry));
    show_region();
    fill(page(21), 1100);
    told("pwrite", pwrite(fd, "other", 5, 2 * PAGE));
    told("fixed", through_ring(&ring, entry));
    show_region();
    entry.opcode = IORING_OP_WRITE_FIXED;
    told("out", through_ring(&ring, entry));
    told("back", pread(fd, page(40), 3 * PAGE, 0));
    told("unregister", syscall(SYS_io_uring_register, ring.fd, IORING_UNREGISTER_BUFFERS, NULL, 0));
    close(ring.fd);
}

static int faults_fd;
static unsigned missing, protected;

/* Answers faults: content for what is missing, permission for what is protected. */
static void *answer_faults(void *nothing) {
    static char source[PAGE] __attribute__((aligned(PAGE)));
    struct uffd_msg message;
    while (read(faults_fd, &message, sizeof message) == sizeof message) {
        uintptr_t at = message.arg.pagefault.address & -PAGE;
        if (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
            protected++;
            struct uffdio_writeprotect allow = {.range = {at, PAGE}};
            if (ioctl(faults_fd, UFFDIO_WRITEPROTECT, &allow)) FAIL("UFFDIO_WRITEPROTECT");
        } else {
            missing++;
            fill(source, 800);
            struct uffdio_copy copy = {.dst = at, .src = (uintptr_t)source, .len = PAGE};
            if (ioctl(faults_fd, UFFDIO_COPY, &copy)) FAIL("UFFDIO_COPY");
        }
    }
    return nothing;
}

/* As QEMU's post-copy migration has it. */
static void own_faults(void) {
    faults_fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (faults_fd < 0) {
        puts("SKIPPED: userfaultfd is not allowed here");
        return;
    }
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
    if (ioctl(faults_fd, UFFDIO_API, &api)) FAIL("UFFDIO_API");
    pthread_t thread;
    pthread_create(&thread, NULL, answer_faults, NULL);
    struct uffdio_register wanted = {.range = {(uintptr_t)page(0), 32 * PAGE}};
    wanted.mode = UFFDIO_REGISTER_MODE_MISSING;
    told("missing", ioctl(faults_fd, UFFDIO_REGISTER, &wanted));
    told("drop", madvise(page(4), 8 * PAGE, MADV_DONTNEED));
    usleep(50000);
    show_region();
    printf("%u faults\n", missing);
    int fds[2];
    if (pipe(fds)) FAIL("pipe");
    told("drop", madvise(page(4), 8 * PAGE, MADV_DONTNEED));
    told("write", write(fds[1], page(5), PAGE));
    told("read", read(fds[0], page(6), PAGE));
    printf("%u faults\n", missing);
    struct uffdio_register other = {.range = {(uintptr_t)page(32), 32 * PAGE}};
    other.mode = UFFDIO_REGISTER_MODE_WP;
    told("protected", ioctl(faults_fd, UFFDIO_REGISTER, &other));
    struct uffdio_writeprotect protect = {.range = {(uintptr_t)page(40), 8 * PAGE},
                                          .mode = UFFDIO_WRITEPROTECT_MODE_WP};
    told("protect", ioctl(faults_fd, UFFDIO_WRITEPROTECT, &protect));
    usleep(50000);
    show_region();
    for (unsigned n = 38; n < 44; n++) try_write("protected", page(n));
    printf("%u faults\n", protected);
    told("unregister", ioctl(faults_fd, UFFDIO_UNREGISTER, &wanted.range));
    told("unregister", ioctl(faults_fd, UFFDIO_UNREGISTER, &other.range));
    try_write("free", page(45));
    printf("%u and %u faults\n", missing, protected);
}

static void *wait_for_word(void *word) {
    /* Not private: what is waited on is found by what the page is. */
    while (*(volatile int *)word == 7) syscall(SYS_futex, word, FUTEX_WAIT, 7, NULL, NULL, 0);
    return NULL;
}

static void futexes(void) {
    int *word = (int *)page(8);
    /* All of it, so that it is merged with another in its place. */
    memset(page(8), 7, 2 * PAGE);
    for (int n = 0; n < 2 * PAGE / 4; n++) word[n] = 7;
    wait_merged(page(8), 2, 2);
    pthread_t thread;
    pthread_create(&thread, NULL, wait_for_word, word);
    usleep(100000);
    fill(page(9), 5);
    *(volatile int *)word = 8;
    told("woken", syscall(SYS_futex, word, FUTEX_WAKE, 100, NULL, NULL, 0) >= 0);
    told("over", pthread_join(thread, NULL));
    pthread_mutexattr_t shared;
    pthread_mutex_t *mutex = (pthread_mutex_t *)page(12);
    pthread_mutexattr_init(&shared);
    pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    told("mutex", pthread_mutex_init(mutex, &shared));
    told("taken", pthread_mutex_lock(mutex));
    usleep(50000);
    told("taken", pthread_mutex_trylock(mutex) == EBUSY);
    told("given up", pthread_mutex_unlock(mutex));
}

int main(int argc, char **argv) {
    static const struct one_case cases[] = {
        {"reads", reads},     {"own_mem", own_mem},       {"process_vm", process_vm},
        {"traced", traced},   {"spliced", spliced},       {"io_uring", uring},
        {"futex", futexes},   {"own_faults", own_faults},
    };
    return run_case(cases, sizeof cases / sizeof *cases, argc, argv);
}
