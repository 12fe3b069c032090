/* The kernel's files for KSM, for who knows of nothing but them. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define KSM "/sys/kernel/mm/ksm/"
/* What has not come about after so many seconds is not going to. */
#define PATIENCE 300

static unsigned long scans_to_wait;

static void die(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
	exit(1);
}

static void put(const char *name, unsigned long value)
{
	char path[128], text[32];
	int length = snprintf(text, sizeof text, "%lu\n", value);

	snprintf(path, sizeof path, KSM "%s", name);
	int fd = open(path, O_WRONLY | O_TRUNC);
	if (fd < 0 || write(fd, text, length) != length || close(fd))
		die(path);
}

static long get(const char *name)
{
	char path[128], text[32] = "";

	snprintf(path, sizeof path, KSM "%s", name);
	int fd = open(path, O_RDONLY);
	if (fd < 0 || read(fd, text, sizeof text - 1) < 2 || close(fd))
		die(path);
	return atol(text);
}

static void rest(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

static void wait_for_scans(void)
{
	unsigned long until = get("full_scans") + scans_to_wait;
	time_t start = time(NULL);

	while ((unsigned long)get("full_scans") < until) {
		if (time(NULL) - start > PATIENCE) {
			errno = ETIMEDOUT;
			die("full scans");
		}
		rest();
	}
}
