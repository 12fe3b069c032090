// read(2) of a file that was not opened with O_DIRECT, of a file system that does without the page cache all the
// same (FUSE): the pages of the buffer are pinned until the server answers, which takes SECONDS. The server is
// a process forked before there is anything to be merged. Says "right", "WRONG" or "SKIPPED".
#include "pages.h"
#include <linux/fuse.h>
#include <signal.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
enum { PAGES = 1024, READ = 64 * PAGE };
static void serve(int fd, int delay) {
    static char in[1 << 20];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        ssize_t got = read(fd, in, sizeof in);
        if (got < 0) { if (errno == EINTR || errno == ENOENT) continue; _exit(0); }
        struct fuse_in_header *h = (void *)in;
        struct { struct fuse_out_header h; char body[READ + 4096]; } *out = calloc(1, sizeof *out);
        out->h.unique = h->unique; size_t len = 0;
        struct fuse_attr attr = {.ino = h->nodeid, .nlink = 1, .mode = h->nodeid == 1 ? 040755 : 0100644, .size = READ};
        switch (h->opcode) {
        case FUSE_INIT: { struct fuse_init_out *o = (void *)out->body; o->major = 7; o->minor = 31; o->max_write = 1 << 17; o->max_pages = 256; o->flags = FUSE_MAX_PAGES; o->max_readahead = 1<<17; len = sizeof *o; break; }
        case FUSE_LOOKUP: { struct fuse_entry_out *o = (void *)out->body; o->nodeid = 2; attr.ino = 2; attr.mode = 0100644; o->attr = attr; o->entry_valid = o->attr_valid = 1000; len = sizeof *o; break; }
        case FUSE_GETATTR: { struct fuse_attr_out *o = (void *)out->body; o->attr = attr; o->attr_valid = 1000; len = sizeof *o; break; }
        case FUSE_OPEN: { struct fuse_open_out *o = (void *)out->body; o->fh = 1; o->open_flags = FOPEN_DIRECT_IO; len = sizeof *o; break; }
        case FUSE_READ: { struct fuse_read_in *r = (void *)(h + 1); len = r->size; sleep(delay); memset(out->body, 'R', len); break; }
        case FUSE_FORGET: case FUSE_BATCH_FORGET: case FUSE_INTERRUPT: free(out); continue;
        case FUSE_FLUSH: case FUSE_RELEASE: break;
        default: out->h.error = -ENOSYS;
        }
        out->h.len = sizeof out->h + len;
        (void)!write(fd, out, out->h.len);
        free(out);
    }
}
int main(int argc, char **argv) {
    char dir[] = "/tmp/fuse_readXXXXXX", opt[99], file[99];
    if (!mkdtemp(dir)) return 2;
    /* Gone with this process, whatever becomes of it. */
    int alone = !unshare(CLONE_NEWNS) && !mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
    int fuse = alone ? open("/dev/fuse", O_RDWR) : -1;
    snprintf(opt, sizeof opt, "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
    if (fuse < 0 || mount("x", dir, "fuse", 0, opt)) { rmdir(dir); printf("SKIPPED: no FUSE\n"); return 0; }
    pid_t server = fork();
    if (!server) serve(fuse, argc > 1 ? atoi(argv[1]) : 3);
    close(fuse);
    snprintf(file, sizeof file, "%s/file", dir);
    int fd = open(file, O_RDONLY);
    if (fd < 0) { perror("open"); umount2(dir, MNT_DETACH); return 2; }
    char *m = mmap(0, PAGES * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int p = 0; p < PAGES; p++) memset(m + p * PAGE, 7, PAGE);
    madvise(m, PAGES * PAGE, MADV_MERGEABLE);
    wait_merged(m, PAGES, PAGES - 1); /* one may be left without a partner */
    ssize_t got = read(fd, m, READ);
    int bad = 0;
    for (int i = 0; i < READ; i++) bad += m[i] != 'R';
    if (bad || got != READ) printf("WRONG: read gave %zd, of which %d bytes are not there\n", got, bad);
    else printf("right\n");
    close(fd); umount2(dir, MNT_DETACH); kill(server, SIGKILL); waitpid(server, 0, 0); rmdir(dir);
    return 0;
}
