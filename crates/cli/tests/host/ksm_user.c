/*
 * A user of KSM, as the tests of its users are: children fill memory with equal and with different
 * bytes, and after each step the counters are what they must be. Prints what it read, a line a step, so
 * that two implementations can be compared. It knows of nothing but the kernel's interface.
 *
 * usage: ksm_user FULL_SCANS MIB [contents]
 * waits after each step until so many full scans are over; a child has so much memory, at most 128. `contents`:
 * only those steps.
 */
#include "ksm_files.h"
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define CHILDREN 3
#define PAGE 4096UL
#define LARGEST (128UL << 20)
/* Of an entry of pagemap. */
#define PRESENT (1ULL << 63)
#define NUMBER ((1ULL << 55) - 1)

static unsigned long most_bytes;
/* Where the children tell what physical pages they have: for each child a list. */
static uint64_t *frames;

/* What a child is told to do. */
struct order {
	enum { FILL, FILL_ONE, CHECK, MERGE, UNMERGE, LEAVE } what;
	int byte;
};

struct child {
	pid_t pid;
	int orders, answers;
};

static struct child children[CHILDREN];
static size_t bytes;

/* A page that no other has is made so by its place. */
static void fill(char *page, int byte, size_t place)
{
	memset(page, byte, PAGE);
	if (byte == 'u')
		memcpy(page, &place, sizeof place);
}

static void check(char *memory, int byte, int last, int nth)
{
	static char expected[PAGE];
	uint64_t *mine = frames + nth * (LARGEST / PAGE);
	int pagemap = open("/proc/self/pagemap", O_RDONLY);

	for (size_t at = 0; at < bytes; at += PAGE) {
		fill(expected, at + PAGE == bytes ? last : byte, nth * LARGEST + at);
		if (memcmp(memory + at, expected, PAGE)) {
			fprintf(stderr, "ksm_user: child %d: page %zu has changed\n", nth, at / PAGE);
			exit(1);
		}
	}
	/* Not before: what is merged need not be present. */
	ssize_t wanted = bytes / PAGE * sizeof *mine;
	if (pread(pagemap, mine, wanted, (uintptr_t)memory / PAGE * sizeof *mine) != wanted)
		die("pagemap");
	for (size_t page = 0; page < bytes / PAGE; page++) {
		off_t entry = (uintptr_t)memory / PAGE + page;

		/* Merged since it was looked at, it is present when it is looked at once more. */
		for (int more = 0; more < 100 && !(mine[page] & PRESENT); more++) {
			(void)*(volatile char *)(memory + page * PAGE);
			if (pread(pagemap, mine + page, sizeof *mine, entry * sizeof *mine) != sizeof *mine)
				die("pagemap");
		}
		/* Masked, as it is for who may not know, every page would be the same. */
		if (!(mine[page] & PRESENT) || !(mine[page] & NUMBER)) {
			fprintf(stderr, "ksm_user: child %d: page %zu: pagemap gives %#llx\n", nth, page,
				(unsigned long long)mine[page]);
			exit(1);
		}
		mine[page] &= NUMBER;
	}
	close(pagemap);
}

static void be_child(int nth, int orders, int answers)
{
	int byte = 0, last = 0;
	struct order order;
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		die("mmap");
	while (read(orders, &order, sizeof order) == sizeof order) {
		switch (order.what) {
		case FILL:
			byte = last = order.byte;
			for (size_t at = 0; at < bytes; at += PAGE)
				fill(memory + at, byte, nth * LARGEST + at);
			break;
		case FILL_ONE:
			last = order.byte;
			fill(memory + bytes - PAGE, last, nth * LARGEST + bytes - PAGE);
			break;
		case CHECK:
			check(memory, byte, last, nth);
			break;
		case MERGE:
			if (madvise(memory, bytes, MADV_MERGEABLE))
				die("MADV_MERGEABLE");
			break;
		case UNMERGE:
			if (madvise(memory, bytes, MADV_UNMERGEABLE))
				die("MADV_UNMERGEABLE");
			break;
		case LEAVE:
			exit(0);
		}
		if (write(answers, "", 1) != 1)
			die("answer");
	}
	exit(0);
}

static void tell(int nth, int what, int byte)
{
	struct order order = { what, byte };
	char answer;

	if (write(children[nth].orders, &order, sizeof order) != sizeof order)
		die("order");
	if (what != LEAVE) {
		if (read(children[nth].answers, &answer, 1) != 1)
			die("a child's answer");
		return;
	}
	int status;
	if (waitpid(children[nth].pid, &status, 0) < 0 || status != 0)
		die("a child's end");
	close(children[nth].orders);
	close(children[nth].answers);
	children[nth].pid = 0;
}

static void start(size_t size)
{
	bytes = size;
	for (int nth = 0; nth < CHILDREN; nth++) {
		int orders[2], answers[2];

		if (pipe2(orders, O_CLOEXEC) || pipe2(answers, O_CLOEXEC))
			die("pipe");
		fflush(stdout);
		pid_t pid = fork();
		if (pid < 0)
			die("fork");
		if (pid == 0) {
			close(orders[1]);
			close(answers[0]);
			be_child(nth, orders[0], answers[1]);
		}
		close(orders[0]);
		close(answers[1]);
		children[nth] = (struct child){ pid, orders[1], answers[0] };
	}
}

static void each(int what, int byte)
{
	for (int nth = 0; nth < CHILDREN; nth++)
		if (children[nth].pid)
			tell(nth, what, byte);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static size_t all_pages(void)
{
	size_t living = 0;

	for (int nth = 0; nth < CHILDREN; nth++)
		living += children[nth].pid != 0;
	return living * (bytes / PAGE);
}

/* How many physical pages the children have between them. */
static size_t physical_pages(void)
{
	static uint64_t all[CHILDREN * (LARGEST / PAGE)];
	size_t count = 0, different = 0;

	for (int nth = 0; nth < CHILDREN; nth++)
		for (size_t page = 0; children[nth].pid && page < bytes / PAGE; page++)
			all[count++] = frames[nth * (LARGEST / PAGE) + page];
	qsort(all, count, sizeof *all, compare);
	for (size_t at = 0; at < count; at++)
		different += at == 0 || all[at] != all[at - 1];
	return different;
}

static void must_be(const char *step, size_t physical, size_t wanted)
{
	if (physical == wanted)
		return;
	fprintf(stderr, "ksm_user: %s: %zu pages have %zu physical pages, not %zu\n", step, all_pages(),
		physical, wanted);
	exit(1);
}

/* Gives the number of physical pages. */
static size_t print_counters(const char *step)
{
	static const char *const names[] = { "pages_shared", "pages_sharing", "pages_unshared",
		"pages_volatile", "ksm_zero_pages", "stable_node_chains", "stable_node_dups" };

	printf("%s:", step);
	for (size_t at = 0; at < sizeof names / sizeof *names; at++)
		printf(" %s %ld", names[at], get(names[at]));
	each(CHECK, 0);
	size_t physical = physical_pages();
	printf(" physical %zu\n", physical);
	/* Each page has one of its own but for those that the counters say are saved. */
	size_t zeros = get("ksm_zero_pages");
	must_be(step, physical + get("pages_sharing") + (zeros ? zeros - 1 : 0), all_pages());
	return physical;
}

/*
 * After it has settled. Scanning is stopped meanwhile, for a page that ksmd has in hand at the moment is
 * in no counter.
 */
static size_t show(const char *step)
{
	wait_for_scans();
	put("run", 0);
	size_t physical = print_counters(step);
	put("run", 1);
	return physical;
}

/* Then each page has a physical one of its own. */
static void stop(const char *step)
{
	put("run", 2);
	must_be(step, print_counters(step), all_pages());
	put("run", 0);
}

static void set_up(unsigned long limit, unsigned long zero, unsigned long pages, unsigned long ms)
{
	put("max_page_sharing", limit);
	put("use_zero_pages", zero);
	put("pages_to_scan", pages);
	put("sleep_millisecs", ms);
}

/* Contents that come and go, and unmerging in each way. */
static void contents(void)
{
	set_up(98304, 0, 98304, 0);
	start(most_bytes);
	tell(0, FILL, 'c');
	tell(1, FILL, 'a');
	tell(2, FILL, 'a');
	each(MERGE, 0);
	put("run", 1);
	show("two contents");
	tell(1, FILL, 'b');
	show("three contents");
	each(FILL, 'd');
	must_be("one content", show("one content"), 1);
	tell(1, FILL_ONE, 'e');
	show("one page of its own");
	put("run", 0);
	print_counters("stopped");
	put("run", 1);
	tell(2, UNMERGE, 0);
	show("a child without");
	tell(2, MERGE, 0);
	show("a child with again");
	stop("unmerged");
	put("run", 1);
	show("merged again");
	tell(1, LEAVE, 0);
	show("a child gone");
	each(FILL, 'u');
	show("all different");
	stop("unmerged again");
	each(LEAVE, 0);
}

/* Each limit is met by what the children have, if they may have so much; the last by 3 of 128 MiB. */
static void limits(void)
{
	static const unsigned long limit[] = { 2, 3, 100, 256, 511, 512, 513, 1535, 1536, 98304 };

	for (size_t at = 0; at < sizeof limit / sizeof *limit; at++) {
		size_t wanted = limit[at] * PAGE / CHILDREN, least = 4UL << 20;
		char step[64];

		set_up(limit[at], 0, 98304, 0);
		if (wanted < least)
			wanted = least;
		start(wanted < most_bytes ? wanted : most_bytes);
		each(FILL, 'l');
		each(MERGE, 0);
		put("run", 1);
		snprintf(step, sizeof step, "limit %lu", limit[at]);
		show(step);
		tell(0, FILL, 'm');
		tell(1, FILL, 'm');
		tell(2, FILL, 'm');
		snprintf(step, sizeof step, "limit %lu, others", limit[at]);
		show(step);
		stop("unmerged");
		each(LEAVE, 0);
	}
}

static void zeros(void)
{
	for (unsigned long zero = 0; zero < 2; zero++) {
		set_up(98304, zero, 98304, 0);
		start(most_bytes);
		each(FILL, 0);
		each(MERGE, 0);
		put("run", 1);
		show(zero ? "zeros by the page of zeros" : "zeros");
		tell(0, FILL, 'x');
		tell(1, FILL_ONE, 'y');
		show("fewer zeros");
		stop("unmerged");
		each(LEAVE, 0);
	}
}

static void at_default_speed(void)
{
	set_up(256, 0, 100, 20);
	/* 5000 pages a second. */
	start(most_bytes / 4);
	each(FILL, 's');
	each(MERGE, 0);
	put("run", 1);
	show("slowly");
	stop("unmerged");
	each(LEAVE, 0);
}

/* With its last user, everything goes; nobody says when. Chains the kernel keeps still. */
static void all_gone(void)
{
	set_up(256, 0, 98304, 0);
	start(most_bytes);
	each(FILL, 'g');
	each(MERGE, 0);
	put("run", 1);
	show("to go");
	each(LEAVE, 0);
	time_t began = time(NULL);
	while (get("pages_shared") + get("pages_sharing") > 0 && time(NULL) - began < PATIENCE)
		rest();
	printf("gone: pages_shared %ld pages_sharing %ld\n", get("pages_shared"), get("pages_sharing"));
	put("run", 0);
}

int main(int argc, char **argv)
{
	scans_to_wait = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	most_bytes = argc > 2 ? strtoul(argv[2], NULL, 10) << 20 : 0;
	int only_contents = argc > 3 && strcmp(argv[3], "contents") == 0;
	if (scans_to_wait == 0 || most_bytes == 0 || most_bytes > LARGEST) {
		fprintf(stderr, "usage: ksm_user FULL_SCANS MIB [contents]\n");
		return 2;
	}
	/* So that one can watch. */
	setvbuf(stdout, NULL, _IOLBF, 0);
	frames = mmap(NULL, CHILDREN * (LARGEST / PAGE) * sizeof *frames, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (frames == MAP_FAILED)
		die("mmap");
	/* Else pages may be skipped for several scans. */
	if (access(KSM "smart_scan", W_OK) == 0)
		put("smart_scan", 0);
	contents();
	if (only_contents)
		return 0;
	limits();
	zeros();
	at_default_speed();
	all_gone();
	return 0;
}
