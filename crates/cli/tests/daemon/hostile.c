/* A client that means harm, in bytes: it has no agent, and connects by itself.
 *
 * usage: hostile SOCKET passing N       connects N times and hangs up at once
 *        hostile SOCKET crowd N         connects N times, and stays without a word
 *        hostile SOCKET fds N           introduces itself with N descriptors
 *        hostile SOCKET file PATH       introduces itself with that file for its pagemap
 *        hostile SOCKET pipe            with a pipe
 *        hostile SOCKET flood N         says N things that want an answer, and never reads
 *
 * What has become of it is written as a line; then it stays until there is no more to be read.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MOST = 253 }; /* of descriptors that the kernel passes at once */

static const char *path;

static int connected(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (s < 0 || connect(s, (struct sockaddr *)&address, sizeof address) != 0) {
        close(s);
        return -1;
    }
    return s;
}

/* Hello: version 2, pages of 4096 bytes, the scope of an API, no domain. */
static void introduce(int s, const int *fds, size_t count) {
    unsigned char hello[] = {0, 0, 2, 0x80, 0x20, 2, 0};
    char control[CMSG_SPACE(MOST * sizeof(int))];
    struct iovec bytes = {hello, sizeof hello};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(header), fds, count * sizeof(int));
    }
    if (sendmsg(s, &message, MSG_NOSIGNAL) < 0)
        perror("sendmsg");
}

/* What came of it: the text of Rejected, or another word. */
static void tell(int s) {
    unsigned char answer[65536];
    ssize_t got = recv(s, answer, sizeof answer, 0);
    if (got >= 4 && answer[0] == 1 && answer[1] == 1)
        /* A reason, the length of a text (one byte or two), the text. */
        printf("rejected %.*s\n", (int)got - 4, answer + 4);
    else if (got >= 2 && answer[1] == 0)
        printf("welcome\n");
    else
        printf("closed\n");
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct rlimit files = {0};
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    path = argv[1];
    int number = argc > 3 ? atoi(argv[3]) : 0, fds[MOST], pair[2];
    if (strcmp(argv[2], "passing") == 0) {
        int done = 0;
        for (int n = 0; n < number; n++) {
            int s = connected();
            done += s >= 0;
            close(s);
        }
        printf("%d\n", done);
    } else if (strcmp(argv[2], "crowd") == 0) {
        int there = 0;
        while (there < number && connected() >= 0)
            there++;
        printf("%d\n", there);
    } else if (strcmp(argv[2], "fds") == 0 && number <= MOST) {
        int s = connected();
        for (int n = 0; n < number; n++)
            fds[n] = open("/proc/self/pagemap", O_RDONLY);
        introduce(s, fds, number);
        tell(s);
    } else if (strcmp(argv[2], "file") == 0 && argc > 3) {
        int s = connected();
        fds[0] = open(argv[3], O_RDONLY);
        introduce(s, fds, 1);
        tell(s);
    } else if (strcmp(argv[2], "pipe") == 0 && pipe(pair) == 0) {
        int s = connected();
        introduce(s, pair, 1);
        tell(s);
    } else if (strcmp(argv[2], "flood") == 0) {
        int s = connected(), said = 0;
        fds[0] = open("/proc/self/pagemap", O_RDONLY);
        introduce(s, fds, 1);
        tell(s);
        /* Unregister, of a region that there is not. */
        unsigned char message[] = {0, 3, 7};
        while (said < number && send(s, message, sizeof message, MSG_NOSIGNAL) > 0)
            said++;
        printf("%d\n", said);
    } else {
        return 2;
    }
    fflush(stdout);
    while (getchar() != EOF) {
    }
    return 0;
}
