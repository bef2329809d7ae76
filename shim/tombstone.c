/* DEL without a daemon: the deletion is written down for its return. The protocol is in README.md. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

#define LOCK_POLL_MS 10

/* An error never stands in a deletion's way: the daemon's own collection of dead attachments returns the address. */
static _Noreturn void give_up(const char *what, int error)
{
	fprintf(stderr,
		"weft: the daemon is away and this deletion could not be recorded (%s: %s); "
		"the address returns when the daemon collects attachments whose namespace is gone\n",
		what, strerror(error));
	finish("", 0, 0);
}

/* The shared lock, or none if it cannot be had in time; it ends with the process. */
static void lock(int64_t deadline)
{
	const struct timespec pause = {0, LOCK_POLL_MS * 1000000};
	int fd = open(LOCK_PATH, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0) {
		fprintf(stderr, "weft: cannot open %s: %s\n", LOCK_PATH, strerror(errno));
		return;
	}
	/* flock(2) has no timeout, and a signal to end it would race with its start. */
	while (flock(fd, LOCK_SH | LOCK_NB)) {
		if ((errno != EWOULDBLOCK && errno != EINTR) || remaining_ms(deadline) == 0) {
			fprintf(stderr, "weft: recording the deletion without the lock: %s\n", strerror(errno));
			return;
		}
		nanosleep(&pause, NULL);
	}
}

static unsigned count_tombstones(int directory)
{
	int fd = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *listing = fd < 0 ? NULL : fdopendir(fd);
	unsigned count = 0;

	if (!listing)
		return 0;
	for (struct dirent *entry = readdir(listing); entry; entry = readdir(listing))
		count += entry->d_name[0] != '.';
	closedir(listing);
	return count;
}

static void write_tombstone(struct slice request)
{
	int directory = open(DELETIONS_DIRECTORY, O_RDONLY | O_DIRECTORY | O_CLOEXEC), fd, error;
	struct timespec now;
	uint64_t random = 0;
	char temporary[96];

	if (directory < 0)
		give_up("opening " DELETIONS_DIRECTORY, errno);
	if (count_tombstones(directory) >= TOMBSTONE_LIMIT)
		fail(CNI_TRY_AGAIN_LATER, "the Weft daemon is not running and too many deletions wait for it already",
		     "start weftd on this node: it works off " DELETIONS_DIRECTORY);
	clock_gettime(CLOCK_REALTIME, &now);
	if (getrandom(&random, sizeof random, GRND_NONBLOCK) < 0)
		random = (uint64_t)now_ms();
	snprintf(temporary, sizeof temporary, ".%010" PRId64 ".%09ld-%d-%016" PRIx64, (int64_t)now.tv_sec, now.tv_nsec,
		 (int)getpid(), random);
	fd = openat(directory, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		give_up("creating a file in " DELETIONS_DIRECTORY, errno);
	error = write_all(fd, request.bytes, request.length);
	if (!error && fsync(fd))
		error = errno;
	close(fd);
	if (!error && renameat(directory, temporary, directory, temporary + 1))
		error = errno;
	if (error) {
		unlinkat(directory, temporary, 0);
		give_up("writing a file in " DELETIONS_DIRECTORY, error);
	}
}

_Noreturn void record_deletion(struct slice request, int64_t deadline)
{
	struct call again = {.outcome = NO_ANSWER};

	if ((mkdir(STATE_DIRECTORY, 0700) && errno != EEXIST) || (mkdir(DELETIONS_DIRECTORY, 0700) && errno != EEXIST))
		give_up("making " DELETIONS_DIRECTORY, errno);
	lock(deadline);
	if (remaining_ms(deadline) > 0)
		execute(NULL, request, deadline, &again);
	if (again.outcome == ANSWERED)
		deliver(&again);
	write_tombstone(request);
	finish("", 0, 0);
}
