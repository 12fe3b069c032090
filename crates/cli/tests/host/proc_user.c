/*
 * A user of KSM that looks at what the kernel tells of it in /proc: it opens the files first of all, and reads
 * them again after each step. Prints what it read, a line a step, so that two implementations can be compared.
 * It knows of nothing but the kernel's interface.
 *
 * usage: proc_user FULL_SCANS
 * waits until so many full scans are over where something is to be merged, or to be noticed.
 */
#include "ksm_files.h"
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#endif

#define PAGE 4096UL
#define EQUAL 200UL
#define ALL 250UL
#define ZEROS 10UL
/* What a record takes of memory, at most. */
#define ITEM_BYTES 64

static int merging_file, stat_file;

static void open_files(const char *process)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%s/ksm_merging_pages", process);
	merging_file = open(path, O_RDONLY);
	if (merging_file < 0)
		die(path);
	snprintf(path, sizeof path, "/proc/%s/ksm_stat", process);
	stat_file = open(path, O_RDONLY);
	if (stat_file < 0)
		die(path);
}

static void read_whole(int fd, char *text, size_t bytes)
{
	ssize_t got = pread(fd, text, bytes - 1, 0);

	if (got <= 0)
		die("pread");
	text[got] = 0;
}

/* What the files tell now, and whether it says that anything is mergeable. The profit is not the same everywhere,
 * as records are not. */
static int look(char *line, size_t bytes)
{
	char merging[32], stat[512], any[8], mergeable[8];
	long items, zeros, pages, profit;
	int end = 0;

	read_whole(merging_file, merging, sizeof merging);
	read_whole(stat_file, stat, sizeof stat);
	if (sscanf(stat,
		   "ksm_rmap_items %ld\nksm_zero_pages %ld\nksm_merging_pages %ld\n"
		   "ksm_process_profit %ld\nksm_merge_any: %7s\nksm_mergeable: %7s\n%n",
		   &items, &zeros, &pages, &profit, any, mergeable, &end) != 6 ||
	    stat[end] != 0) {
		fprintf(stderr, "proc_user: %s", stat);
		exit(1);
	}
	long saved = (pages + zeros) * PAGE;
	snprintf(line, bytes, "%ld, %ld merging, %ld zero, %ld items, any %s%s", atol(merging), pages,
		 zeros, items, any,
		 profit <= saved && profit >= saved - items * ITEM_BYTES ? "" : ", wrong profit");
	return strcmp(mergeable, "yes") == 0;
}

/* What the files tell when they say that something is mergeable, or nothing: who keeps count may be told a moment
 * after the call. */
static void show(const char *step, int mergeable)
{
	char line[256];
	time_t began = time(NULL);
	int found;

	while ((found = look(line, sizeof line)) != mergeable && time(NULL) - began < PATIENCE) {
		struct timespec pause = { 0, 1000000 };

		nanosleep(&pause, NULL);
	}
	printf("%s: %s, mergeable %s\n", step, line, found ? "yes" : "no");
}

/* The same without that, which not all say of a child that has inherited it. */
static void show_child(const char *step)
{
	char line[256];

	look(line, sizeof line);
	printf("%s: %s\n", step, line);
}

static unsigned char *map(unsigned long pages)
{
	unsigned char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		die("mmap");
	return at;
}

static void advise(unsigned char *at, unsigned long pages, int advice)
{
	if (madvise(at, pages * PAGE, advice))
		die("madvise");
}

static void merge_any(unsigned long on)
{
	if (prctl(PR_SET_MEMORY_MERGE, on, 0, 0, 0))
		die("PR_SET_MEMORY_MERGE");
}

static void wait_for(pid_t child)
{
	int status;

	if (child < 0 || waitpid(child, &status, 0) != child || status)
		die("child");
}

/* A child looks at its own files, and leaves its parent's as they are. */
static void child_shows(const char *step, pid_t child)
{
	if (child == 0) {
		open_files("self");
		show_child(step);
		fflush(stdout);
		_exit(0);
	}
	wait_for(child);
}

/* The same by its number, from outside, once it has begun. */
static void look_at_a_child(void)
{
	int gate[2], begun[2];
	char number[16];
	int files[] = { merging_file, stat_file };

	if (pipe(gate) || pipe(begun))
		die("pipe");
	pid_t child = fork();
	if (child == 0) {
		char byte;

		close(gate[1]);
		_exit(write(begun[1], "", 1) != 1 || read(gate[0], &byte, 1) != 0);
	}
	close(gate[0]);
	close(begun[1]);
	char byte;
	if (read(begun[0], &byte, 1) != 1)
		die("child");
	close(begun[0]);
	snprintf(number, sizeof number, "%d", child);
	open_files(number);
	show_child("a child, by its number");
	close(gate[1]);
	wait_for(child);
	char text[32];
	if (pread(merging_file, text, sizeof text, 0) >= 0 || errno != ESRCH)
		die("a child that is no more has pages");
	printf("a child that is no more: %s\n", strerror(errno));
	merging_file = files[0];
	stat_file = files[1];
}

int main(int argc, char **argv)
{
	open_files("self");
	/* So that one can watch, and no child has what its parent has not written yet. */
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 3 && strcmp(argv[1], "exec") == 0) {
		show(argv[2], 0);
		return 0;
	}
	scans_to_wait = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	if (scans_to_wait == 0) {
		fprintf(stderr, "usage: proc_user FULL_SCANS\n");
		return 2;
	}
	put("run", 2);
	put("pages_to_scan", 10000);
	put("sleep_millisecs", 0);
	put("max_page_sharing", 256);
	put("use_zero_pages", 0);
	/* Else pages may be skipped for several scans. */
	if (access(KSM "smart_scan", W_OK) == 0)
		put("smart_scan", 0);
	show("at first", 0);

	unsigned char *memory = map(ALL);
	for (unsigned long page = 0; page < ALL; page++) {
		memset(memory + page * PAGE, 'e', PAGE);
		if (page >= EQUAL)
			memcpy(memory + page * PAGE, &page, sizeof page);
	}
	show("filled", 0);
	advise(memory, ALL, MADV_MERGEABLE);
	show("marked", 1);
	put("run", 1);
	wait_for_scans();
	show("merged", 1);
	for (unsigned long page = 0; page < 20; page++)
		memcpy(memory + page * PAGE, &page, sizeof page);
	wait_for_scans();
	show("written to", 1);
	advise(memory, EQUAL / 2, MADV_UNMERGEABLE);
	wait_for_scans();
	show("half of it unmergeable", 1);

	put("run", 0);
	show("stopped", 1);
	child_shows("a child by fork", fork());
	show("the parent of a child", 1);
	pid_t child = fork();
	if (child == 0) {
		execl("/proc/self/exe", "proc_user", "exec", "a child that executed", (char *)NULL);
		_exit(1);
	}
	wait_for(child);
	put("run", 2);
	show("unmerged", 1);
	put("run", 1);
	wait_for_scans();
	show("merged again", 1);
	put("run", 2);
	advise(memory, ALL, MADV_UNMERGEABLE);
	show("unmergeable", 0);

	merge_any(1);
	show("all is to be merged", 1);
	child_shows("a child of whom all is to be merged", fork());
	child_shows("one by a system call", syscall(SYS_fork));
	look_at_a_child();
	show("their parent", 1);
	merge_any(0);
	show("not any more", 0);

	unsigned char *zeros = map(ZEROS);
	memset(zeros, 1, ZEROS * PAGE);
	memset(zeros, 0, ZEROS * PAGE);
	put("use_zero_pages", 1);
	advise(zeros, ZEROS, MADV_MERGEABLE);
	put("run", 1);
	wait_for_scans();
	show("zeros", 1);
	memset(zeros, 'z', PAGE);
	wait_for_scans();
	show("fewer zeros", 1);
	put("run", 2);
	show("no zeros", 1);
	return 0;
}
