/*
 * The numerge agent for programs that link it: a monitor of virtual machines has its guests' memory merged
 * with that of other programs, by the engine of the host (`numerge daemon`).
 *
 *     cc vmm.c -lnumerge_client                           (libnumerge_client.so)
 *     cc vmm.c libnumerge_client.a -lhwloc -lnuma -lgcc_s -lm
 *
 * A process has one agent. All functions may be called by any thread, and by no signal handler. Those that
 * give an int give 0, or -1 with errno set and numerge_error() telling more.
 *
 * fork(3) is seen, and its child has the memory merged that it registers itself. An allocator with fork
 * handlers of its own must have registered them before numerge_connect().
 */
#ifndef NUMERGE_H
#define NUMERGE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Gives the process an agent that goes to the engine at `socket` and asks to be in the security domain
 * `domain` (NULL: that of its user). Does not wait: an engine that is not there is looked for again and
 * again. Where this user may not have a userfaultfd, and the engine lends none, the status's `problem` says so.
 * EINVAL: a setting is wrong; EBUSY: there is an agent already, or the preload library; ENOSYS: the machine
 * can't merge.
 */
int numerge_connect(const char *socket, const char *domain);

/*
 * Has memory merged from now on: whole pages of private anonymous memory that the program has mapped, in
 * which nothing is that the allocator uses. Until it is unregistered, what changes its mapping or drops its
 * content is done by the functions below; what there is no function for, between unregistering it and
 * registering it again. Reading and writing, by threads, system calls and devices, is as ever.
 * EINVAL: it is not such memory, or has a property that merging would take away; EEXIST: it is registered.
 */
int numerge_register(void *start, size_t bytes);

/*
 * Ends merging of whatever is registered in a range, and gives the program memory of its own with the same
 * content. Gives how many pages had to stay in a private mapping of the engine's file, for want of a way to
 * know that no device writes to them: what drops their content (MADV_DONTNEED) still goes by the functions
 * below. ENOMEM: what could not be copied is merged still.
 */
int64_t numerge_unregister(void *start, size_t bytes);

/* mmap(2), munmap(2) and so on, for ranges that may hold registered memory. */
void *numerge_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset);
int numerge_munmap(void *start, size_t bytes);
void *numerge_mremap(void *old, size_t old_bytes, size_t new_bytes, int flags, void *new_place);
int numerge_mprotect(void *start, size_t bytes, int protection);
int numerge_madvise(void *start, size_t bytes, int advice);

struct numerge_status {
    uint64_t connected;        /* 1: there is an engine */
    uint64_t pages_offered;    /* registered by the program */
    uint64_t pages_registered; /* of these, those the engine has been told of */
    uint64_t pages_merged;     /* of these, those mapped to frames */
    uint64_t pages_of_zeros;   /* of these, those mapped to the machine's page of zeros */
    char problem[256];         /* why nothing will ever be merged, or "" */
};

/*
 * Fills `status`, of which the program knows `bytes` (sizeof *status). Looks at all registered memory.
 * EINVAL: less than a status has.
 */
int numerge_status(struct numerge_status *status, size_t bytes);

/*
 * Called by the program's first thread before it ends by pthread_exit(3) while others live on: the process then
 * ends with the last of them. The agent's own threads would keep it.
 */
void numerge_keep_until_last(void);

/* What the last of these functions that failed on this thread had to say; "" if none has. */
const char *numerge_error(void);

#ifdef __cplusplus
}
#endif

#endif
