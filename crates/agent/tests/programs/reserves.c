// Reserves address space and makes parts of it usable later, as allocators do; and runs a coroutine on
// a stack of its own making, all of it mergeable where all large mappings are.
#include "client.h"
#include <ucontext.h>

#define PAGES 512UL

static unsigned char *region;
static ucontext_t outside, inside;

static void on_own_stack(void) {
    for (int round = 0; round < 200; round++) {
        // The stack is merged meanwhile; so is what its own calls are about.
        volatile uint64_t local[512];
        for (int n = 0; n < 512; n++)
            local[n] = n * 7 + round;
        CHECK(mprotect(region, PAGE, PROT_READ) == 0);
        CHECK(*(volatile unsigned char *)region == 1);
        CHECK(mprotect(region, PAGE, PROT_READ | PROT_WRITE) == 0);
        usleep(1000);
        for (int n = 0; n < 512; n++)
            CHECK(local[n] == (uint64_t)(n * 7 + round));
    }
}

int main(void) {
    region = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(region != MAP_FAILED);
    CHECK(mprotect(region, 32 * PAGE, PROT_READ | PROT_WRITE) == 0);
    for (size_t n = 0; n < 32; n++)
        fill(region + n * PAGE, n + 1);
    wait_merged(region, 32 * PAGE);
    unsigned char *stack = mmap(NULL, 1UL << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(stack != MAP_FAILED);
    memset(stack, 0x55, 1UL << 20);
    // Its middle is merged; the rest the coroutine will be using.
    region[0] = 1;
    CHECK(getcontext(&inside) == 0);
    inside.uc_stack.ss_sp = stack;
    inside.uc_stack.ss_size = 1UL << 20;
    inside.uc_link = &outside;
    makecontext(&inside, on_own_stack, 0);
    CHECK(swapcontext(&outside, &inside) == 0);
    for (size_t n = 1; n < 32; n++)
        CHECK(holds(region + n * PAGE, n + 1));
    printf("fine\n");
    return 0;
}
