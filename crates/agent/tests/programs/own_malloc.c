// A program with a malloc of its own, whose memory comes from mmap, asked for with its lock held: a call of
// it from within would wait for ever. Threads have it give them memory and check that.
#include "client.h"
#include <pthread.h>
#include <sched.h>

static volatile int locked;
static unsigned char *chunk, *chunk_end;

static void *from_chunk(size_t bytes) {
    while (__sync_lock_test_and_set(&locked, 1))
        sched_yield();
    bytes = (bytes + 31) & ~15UL;
    if (!chunk || bytes > (size_t)(chunk_end - chunk)) {
        size_t wanted = bytes > (1UL << 20) ? bytes + PAGE : 2UL << 20;
        chunk = mmap(NULL, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (chunk == MAP_FAILED)
            _exit(6);
        chunk_end = chunk + wanted;
    }
    unsigned char *at = chunk + 16;
    *(size_t *)chunk = bytes - 16;
    chunk += bytes;
    __sync_lock_release(&locked);
    return at;
}

void *malloc(size_t bytes) { return from_chunk(bytes); }
void free(void *at) { (void)at; }
void *calloc(size_t n, size_t bytes) { return from_chunk(n * bytes); }
void *realloc(void *at, size_t bytes) {
    void *new = from_chunk(bytes);
    if (at) {
        size_t had = *(size_t *)((unsigned char *)at - 16);
        memcpy(new, at, had < bytes ? had : bytes);
    }
    return new;
}

static void *work(void *argument) {
    uint64_t content = (uintptr_t)argument;
    for (int round = 0; round < 300; round++) {
        unsigned char *got[16];
        for (int n = 0; n < 16; n++)
            fill(got[n] = malloc(PAGE), content + n);
        for (int n = 0; n < 16; n++)
            CHECK(holds(got[n], content + n));
        usleep(1000);
        for (int n = 0; n < 16; n++)
            CHECK(holds(got[n], content + n));
    }
    return NULL;
}

int main(void) {
    pthread_t threads[3];
    for (uintptr_t n = 0; n < 3; n++)
        CHECK(pthread_create(&threads[n], NULL, work, (void *)(n % 2 + 1)) == 0);
    for (int n = 0; n < 3; n++)
        CHECK(pthread_join(threads[n], NULL) == 0);
    printf("fine\n");
    return 0;
}
