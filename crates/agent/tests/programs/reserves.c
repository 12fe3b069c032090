// Reserves address space and makes parts of it usable later, as allocators do; and has a stack of its own
// making for a thread, all of it mergeable where all large mappings are.
#include "client.h"
#include <pthread.h>

#define PAGES 512UL

static void *on_own_stack(void *argument) {
    volatile unsigned char *region = argument;
    for (int round = 0; round < 200; round++) {
        // The stack is merged meanwhile; so is what its own calls are about.
        volatile uint64_t local[512];
        for (int n = 0; n < 512; n++)
            local[n] = n * 7 + round;
        CHECK(mprotect((void *)region, PAGE, PROT_READ) == 0);
        CHECK(region[0] == 1);
        CHECK(mprotect((void *)region, PAGE, PROT_READ | PROT_WRITE) == 0);
        usleep(1000);
        for (int n = 0; n < 512; n++)
            CHECK(local[n] == (uint64_t)(n * 7 + round));
    }
    return NULL;
}

int main(void) {
    unsigned char *region = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(region != MAP_FAILED);
    CHECK(mprotect(region, 32 * PAGE, PROT_READ | PROT_WRITE) == 0);
    for (size_t n = 0; n < 32; n++)
        fill(region + n * PAGE, n + 1);
    wait_merged(region, 32 * PAGE);
    unsigned char *stack = mmap(NULL, 1UL << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(stack != MAP_FAILED);
    memset(stack, 0x55, 1UL << 20);
    // Its middle is merged; the rest the thread will be using.
    region[0] = 1;
    pthread_attr_t attributes;
    pthread_t thread;
    CHECK(pthread_attr_init(&attributes) == 0);
    CHECK(pthread_attr_setstack(&attributes, stack, 1UL << 20) == 0);
    CHECK(pthread_create(&thread, &attributes, on_own_stack, region) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    for (size_t n = 1; n < 32; n++)
        CHECK(holds(region + n * PAGE, n + 1));
    printf("fine\n");
    return 0;
}
