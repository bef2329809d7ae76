/* Growing byte buffers, bounded and timed input, complete output, the clock. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

void append(struct buffer *buffer, const void *bytes, size_t length)
{
	if (length == 0)
		return;
	if (length > buffer->capacity - buffer->length) {
		size_t capacity = (buffer->length + length) * 2 + 256;
		uint8_t *grown = realloc(buffer->bytes, capacity);

		if (!grown) {
			static const char error[] =
				"{\"cniVersion\":\"1.1.0\",\"code\":11,\"msg\":\"the weft shim is out of memory\"}\n";
			(void)write_all(STDOUT_FILENO, error, sizeof error - 1);
			_exit(1);
		}
		buffer->bytes = grown;
		buffer->capacity = capacity;
	}
	memcpy(buffer->bytes + buffer->length, bytes, length);
	buffer->length += length;
}

void append_text(struct buffer *buffer, const char *text)
{
	append(buffer, text, strlen(text));
}

int read_all(int fd, struct buffer *buffer, size_t limit, int64_t deadline)
{
	uint8_t chunk[16384];

	for (;;) {
		struct pollfd ready = {.fd = fd, .events = POLLIN};
		int count = poll(&ready, 1, remaining_ms(deadline));
		ssize_t got;

		if (count == 0)
			return ETIMEDOUT;
		if (count > 0 && (got = read(fd, chunk, sizeof chunk)) >= 0) {
			if (got == 0)
				return 0;
			if ((size_t)got > limit - buffer->length)
				return EFBIG;
			append(buffer, chunk, (size_t)got);
		} else if (errno != EINTR && errno != EAGAIN) {
			return errno;
		}
	}
}

int write_all(int fd, const void *bytes, size_t length)
{
	const uint8_t *next = bytes;

	while (length > 0) {
		ssize_t written = write(fd, next, length);

		if (written < 0) {
			if (errno == EINTR)
				continue;
			return errno;
		}
		next += written;
		length -= (size_t)written;
	}
	return 0;
}

int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int remaining_ms(int64_t deadline)
{
	int64_t left = deadline - now_ms();

	return left > 0 ? (int)left : 0;
}
