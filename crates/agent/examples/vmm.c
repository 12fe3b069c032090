/*
 * What a monitor of virtual machines does that links the agent: two guests' memory, merged while they run.
 *
 *     cargo build --release -p numerge-agent-capi
 *     cc -I crates/agent/include crates/agent/examples/vmm.c -L target/release -lnumerge_client -o vmm
 *     ./vmm SOCKET        # where an engine listens: `numerge daemon --socket SOCKET`
 */
#define _GNU_SOURCE
#include <numerge.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define GUEST_PAGES 1024UL
#define GUEST_BYTES (GUEST_PAGES * PAGE)
/* An engine that has much else to do may take a while. */
#define PATIENCE_MS 60000

static void fail(const char *what, const char *why) {
    fprintf(stderr, "vmm: %s: %s\n", what, why);
    exit(1);
}

/* What the guests' image has at a page: the same in both. */
static unsigned char content(size_t page) { return page % 250 + 1; }

static int holds(const unsigned char *at, unsigned char byte) {
    for (size_t n = 0; n < PAGE; n++)
        if (((const volatile unsigned char *)at)[n] != byte)
            return 0;
    return 1;
}

/* The first `pages` of each guest hold their image, the others zeros. */
static void check(unsigned char *guests[2], size_t pages) {
    for (int guest = 0; guest < 2; guest++)
        for (size_t page = 0; page < GUEST_PAGES; page++)
            if (!holds(guests[guest] + page * PAGE, page < pages ? content(page) : 0))
                fail("check", "a page changed");
}

static struct numerge_status status(void) {
    struct numerge_status found;
    if (numerge_status(&found, sizeof found) != 0)
        fail("status", numerge_error());
    return found;
}

int main(int argc, char **argv) {
    if (argc != 2)
        fail("usage", "vmm SOCKET");
    if (numerge_connect(argv[1], NULL) != 0)
        fail("connect", numerge_error());

    unsigned char *guests[2];
    for (int guest = 0; guest < 2; guest++) {
        guests[guest] = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (guests[guest] == MAP_FAILED)
            fail("mmap", "no memory");
        for (size_t page = 0; page < GUEST_PAGES; page++)
            memset(guests[guest] + page * PAGE, content(page), PAGE);
        if (numerge_register(guests[guest], GUEST_BYTES) != 0)
            fail("register", numerge_error());
    }
    for (int ms = 0; status().pages_merged < 2 * GUEST_PAGES; ms += 10) {
        if (ms > PATIENCE_MS)
            fail("merge", status().problem);
        usleep(10000);
    }
    printf("%lu of %lu pages merged\n", (unsigned long)status().pages_merged,
           (unsigned long)status().pages_offered);
    check(guests, GUEST_PAGES);

    /* The guests run: what one writes the other does not see. */
    memset(guests[0] + 7 * PAGE, 255, PAGE);
    if (!holds(guests[0] + 7 * PAGE, 255) || !holds(guests[1] + 7 * PAGE, content(7)))
        fail("write", "not where it was made");
    memset(guests[0] + 7 * PAGE, content(7), PAGE);

    /* A balloon takes the upper half of each, which reads as zeros when the guest takes it back. */
    for (int guest = 0; guest < 2; guest++)
        if (numerge_madvise(guests[guest] + GUEST_BYTES / 2, GUEST_BYTES / 2, MADV_DONTNEED) != 0)
            fail("madvise", numerge_error());
    check(guests, GUEST_PAGES / 2);

    for (int guest = 0; guest < 2; guest++)
        if (numerge_unregister(guests[guest], GUEST_BYTES) < 0)
            fail("unregister", numerge_error());
    check(guests, GUEST_PAGES / 2);
    for (int guest = 0; guest < 2; guest++)
        if (numerge_munmap(guests[guest], GUEST_BYTES) != 0)
            fail("munmap", numerge_error());
    printf("fine\n");
    return 0;
}
