/*
 * One unary gRPC call on a unix socket: HTTP/2 by nghttp2, the rest by hand.
 *
 * Protocol: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. The whole call lives in one loop with one
 * deadline, kept here besides the one told to the server: connect(2) and the first writes succeed with a stopped daemon, too.
 *
 * A runtime writes the configuration after it has started the program. Meanwhile the daemon is connected to and told what is
 * to come, so that it is awake and has read all but the request itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "shim.h"

#define GATHERED ((size_t)65536) /* bytes of frames put into one write, about */
#define PREFIX 5 /* bytes before each gRPC message: compressed flag, length in network order */

#define NOT_GRPC "what listens at " SOCKET_PATH " does not speak gRPC as Weft does"

enum grpc_status { OK = 0, UNKNOWN = 2, DEADLINE_EXCEEDED = 4, UNIMPLEMENTED = 12, INTERNAL = 13, DATA_LOSS = 15, ABSENT = -1 };

struct exchange {
	nghttp2_session *session;
	int32_t stream;
	struct buffer sent; /* the request with its prefix */
	size_t sent_up_to;
	struct buffer pending; /* frames on their way to the socket */
	size_t pending_up_to;
	struct buffer *received;
	int fd, grpc_status, http_status;
	uint32_t reset;
	bool complete; /* the request is there, so its frames may go */
	bool closed;
	char grpc_message[1024];
};

static void report(struct call *call, enum outcome outcome, const char *message, const char *details)
{
	call->outcome = outcome;
	snprintf(call->message, sizeof call->message, "%s", message);
	snprintf(call->details, sizeof call->details, "%s", details);
}

/* Waits for room in the backlog, in the kernel, instead of polling for it: connect(2) of a unix socket obeys SO_SNDTIMEO. */
static int connect_daemon(int64_t deadline, int *fd)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = SOCKET_PATH};
	int error = 0;

	*fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (*fd < 0)
		return errno;
	for (;;) {
		int left = remaining_ms(deadline);
		struct timeval limit = {left / 1000, left % 1000 * 1000};

		if (left == 0) { /* as a timeout it would mean forever */
			error = EAGAIN;
			break;
		}
		setsockopt(*fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
		if (connect(*fd, (const struct sockaddr *)&address, sizeof address) == 0)
			break;
		error = errno;
		if (error != EINTR)
			break;
		error = 0;
	}
	if (!error && fcntl(*fd, F_SETFL, O_NONBLOCK))
		error = errno;
	if (error)
		close(*fd);
	return error;
}

static int hex_digit(uint8_t character)
{
	if (character >= '0' && character <= '9')
		return character - '0';
	character |= 0x20;
	return character >= 'a' && character <= 'f' ? character - 'a' + 10 : -1;
}

/* grpc-message is percent-encoded. */
static void decode_percent(char *text, size_t capacity, const uint8_t *encoded, size_t length)
{
	size_t written = 0;

	for (size_t i = 0; i < length && written + 1 < capacity; i++) {
		uint8_t character = encoded[i];

		if (character == '%' && length - i > 2 && hex_digit(encoded[i + 1]) >= 0 && hex_digit(encoded[i + 2]) >= 0) {
			character = (uint8_t)(hex_digit(encoded[i + 1]) << 4 | hex_digit(encoded[i + 2]));
			i += 2;
		}
		text[written++] = (char)character;
	}
	text[written] = 0;
}

static int decode_number(const uint8_t *digits, size_t length)
{
	int number = 0;

	if (length == 0 || length > 4)
		return ABSENT;
	for (size_t i = 0; i < length; i++) {
		if (digits[i] < '0' || digits[i] > '9')
			return ABSENT;
		number = number * 10 + digits[i] - '0';
	}
	return number;
}

static bool is_named(const uint8_t *name, size_t length, const char *expected)
{
	return length == strlen(expected) && memcmp(name, expected, length) == 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
		     const uint8_t *value, size_t value_length, uint8_t flags, void *user_data)
{
	struct exchange *exchange = user_data;

	(void)session;
	(void)flags;
	if (frame->hd.stream_id != exchange->stream)
		return 0;
	if (is_named(name, name_length, "grpc-status"))
		exchange->grpc_status = decode_number(value, value_length);
	else if (is_named(name, name_length, "grpc-message"))
		decode_percent(exchange->grpc_message, sizeof exchange->grpc_message, value, value_length);
	else if (is_named(name, name_length, ":status"))
		exchange->http_status = decode_number(value, value_length);
	return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data, size_t length, void *user_data)
{
	struct exchange *exchange = user_data;

	(void)session;
	(void)flags;
	if (stream != exchange->stream)
		return 0;
	if (length > RESPONSE_LIMIT - exchange->received->length)
		return NGHTTP2_ERR_CALLBACK_FAILURE;
	append(exchange->received, data, length);
	return 0;
}

static int on_close(nghttp2_session *session, int32_t stream, uint32_t error, void *user_data)
{
	struct exchange *exchange = user_data;

	(void)session;
	if (stream == exchange->stream) {
		exchange->closed = true;
		exchange->reset = error;
	}
	return 0;
}

/* The server's last word ends a call, even if the request was not read to its end. */
static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user_data)
{
	struct exchange *exchange = user_data;

	(void)session;
	if (frame->hd.stream_id == exchange->stream && (frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA) &&
	    frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
		exchange->closed = true;
	return 0;
}

static ssize_t read_request(nghttp2_session *session, int32_t stream, uint8_t *into, size_t capacity, uint32_t *flags,
			    nghttp2_data_source *source, void *user_data)
{
	struct exchange *exchange = user_data;
	size_t length = exchange->sent.length - exchange->sent_up_to;

	(void)session;
	(void)stream;
	(void)source;
	if (!exchange->complete)
		return NGHTTP2_ERR_DEFERRED;
	if (length > capacity)
		length = capacity;
	memcpy(into, exchange->sent.bytes + exchange->sent_up_to, length);
	exchange->sent_up_to += length;
	if (exchange->sent_up_to == exchange->sent.length)
		*flags |= NGHTTP2_DATA_FLAG_EOF;
	return (ssize_t)length;
}

static nghttp2_nv header(const char *name, const char *value)
{
	union { /* nghttp2 does not write to them, but its type does not say so */
		const char *text;
		uint8_t *bytes;
	} name_bytes = {name}, value_bytes = {value};

	return (nghttp2_nv){name_bytes.bytes, value_bytes.bytes, strlen(name), strlen(value), NGHTTP2_NV_FLAG_NONE};
}

/* 0, or nghttp2's error. */
static int open_stream(struct exchange *exchange, int64_t deadline)
{
	nghttp2_session_callbacks *callbacks;
	nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0}};
	nghttp2_data_provider body = {.read_callback = read_request};
	int left = remaining_ms(deadline), error;
	char timeout[24];

	/* The server's deadline comes first, so that its answer about it arrives before ours. */
	snprintf(timeout, sizeof timeout, "%dm", left - (left < 2500 ? left / 5 : 500));
	nghttp2_nv headers[] = {
		header(":method", "POST"),
		header(":scheme", "http"),
		header(":path", "/weft.cni.v1.Cni/Execute"),
		header(":authority", "localhost"),
		header("te", "trailers"),
		header("content-type", "application/grpc"),
		header("user-agent", "weft-shim"),
		header("grpc-timeout", timeout),
	};

	if ((error = nghttp2_session_callbacks_new(&callbacks)))
		return error;
	nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
	nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
	nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
	error = nghttp2_session_client_new(&exchange->session, callbacks, exchange);
	nghttp2_session_callbacks_del(callbacks);
	if (error)
		return error;
	/* Windows stay as they are: an answer fits into the first one, and nghttp2 opens it again for a larger one. */
	if ((error = nghttp2_submit_settings(exchange->session, NGHTTP2_FLAG_NONE, settings, 1)))
		return error;
	exchange->stream = nghttp2_submit_request(exchange->session, NULL, headers, sizeof headers / sizeof *headers, &body, NULL);
	return exchange->stream < 0 ? exchange->stream : 0;
}

/*
 * Writes what the session wants written, as far as the socket takes it. 0, EAGAIN if it took a part, or another errno.
 * Frames are gathered: preface, settings and a usual request are one write, and the daemon wakes once.
 */
static int flush(struct exchange *exchange)
{
	struct buffer *pending = &exchange->pending;

	for (;;) {
		ssize_t length = 0;

		if (exchange->pending_up_to == pending->length) {
			exchange->pending_up_to = pending->length = 0;
			while (pending->length < GATHERED) {
				const uint8_t *frame;

				length = nghttp2_session_mem_send(exchange->session, &frame);
				if (length < 0)
					return ENOMEM;
				if (length == 0)
					break;
				append(pending, frame, (size_t)length);
			}
			if (pending->length == 0)
				return 0;
		}
		length = send(exchange->fd, pending->bytes + exchange->pending_up_to, pending->length - exchange->pending_up_to, MSG_NOSIGNAL);
		if (length < 0) {
			if (errno == EINTR)
				continue;
			return errno;
		}
		exchange->pending_up_to += (size_t)length;
	}
}

/* Runs the exchange until its stream is closed; otherwise reports why not and returns false. */
static bool converse(struct exchange *exchange, int64_t deadline, struct call *call)
{
	uint8_t chunk[16384];

	while (!exchange->closed) {
		int error = flush(exchange), left = remaining_ms(deadline), count;
		struct pollfd ready = {.fd = exchange->fd, .events = (short)(error == EAGAIN ? POLLIN | POLLOUT : POLLIN)};
		ssize_t got;

		/* A server may have answered and gone without reading all: what it said is still to be read. */
		if (error && error != EAGAIN && error != EPIPE && error != ECONNRESET) {
			report(call, NO_ANSWER, "cannot write to the Weft daemon", strerror(error));
			return false;
		}
		/* After a violation nghttp2 says goodbye and goes deaf, instead of failing. */
		if (!nghttp2_session_want_read(exchange->session) && !nghttp2_session_want_write(exchange->session)) {
			report(call, FAULTY, NOT_GRPC, "it violates the HTTP/2 protocol");
			return false;
		}
		count = left > 0 ? poll(&ready, 1, left) : 0;
		if (count == 0) {
			report(call, NO_ANSWER, "the Weft daemon did not answer in time",
			       "it accepts connections at " SOCKET_PATH " but hangs: see its log on this node");
			return false;
		}
		if (count < 0 || !(ready.revents & (POLLIN | POLLHUP | POLLERR)))
			continue;
		got = read(exchange->fd, chunk, sizeof chunk);
		if (got < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (got <= 0) {
			report(call, NO_ANSWER, "the Weft daemon went away during the call",
			       got ? strerror(errno) : "it closed the connection; the runtime will try again");
			return false;
		}
		got = nghttp2_session_mem_recv(exchange->session, chunk, (size_t)got);
		if (got < 0) {
			report(call, FAULTY, NOT_GRPC, nghttp2_strerror((int)got));
			return false;
		}
	}
	return true;
}

static void judge(const struct exchange *exchange, struct call *call)
{
	const struct buffer *received = &call->received;
	struct slice message;
	char details[sizeof call->details];

	if (exchange->grpc_status == OK) {
		if (received->length >= PREFIX) {
			const uint8_t *prefix = received->bytes;
			size_t length = (size_t)prefix[1] << 24 | (size_t)prefix[2] << 16 | (size_t)prefix[3] << 8 | prefix[4];

			message = (struct slice){prefix + PREFIX, received->length - PREFIX};
			if (prefix[0] == 0 && length == message.length && decode_response(message, &call->response)) {
				call->outcome = ANSWERED;
				return;
			}
		}
		report(call, FAULTY, "the Weft daemon's answer cannot be decoded", "shim and daemon may be of builds that do not fit");
		return;
	}
	snprintf(details, sizeof details, "grpc-status %d, http status %d, reset %u: %s", exchange->grpc_status,
		 exchange->http_status, (unsigned)exchange->reset, exchange->grpc_message);
	switch (exchange->grpc_status) {
	case UNKNOWN:
	case INTERNAL:
	case DATA_LOSS:
		report(call, FAULTY, "the Weft daemon failed inside: see its log on this node", details);
		break;
	case UNIMPLEMENTED:
		report(call, NO_ANSWER, "the Weft daemon does not know this call: an upgrade of it may be under way", details);
		break;
	case DEADLINE_EXCEEDED:
		report(call, NO_ANSWER, "the Weft daemon did not finish in time", details);
		break;
	default:
		report(call, NO_ANSWER, "the Weft daemon refused the call", details);
	}
}

static void end(struct exchange *exchange)
{
	nghttp2_session_del(exchange->session);
	free(exchange->sent.bytes);
	free(exchange->pending.bytes);
	close(exchange->fd);
}

struct exchange *begin(int64_t deadline)
{
	static struct exchange early = {.grpc_status = ABSENT, .http_status = ABSENT};
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = SOCKET_PATH};
	int error;

	early.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (early.fd < 0)
		return NULL;
	/* The session first: who is connected to wakes up, and is to find something to read. */
	error = open_stream(&early, deadline);
	if (!error && connect(early.fd, (const struct sockaddr *)&address, sizeof address) == 0) {
		error = flush(&early);
		if (!error || error == EAGAIN) /* the rest goes with the request */
			return &early;
	}
	end(&early);
	return NULL;
}

void execute(struct exchange *begun, struct slice request, int64_t deadline, struct call *call)
{
	struct exchange own = {.grpc_status = ABSENT, .http_status = ABSENT}, *exchange = begun ? begun : &own;
	uint8_t prefix[PREFIX] = {0, (uint8_t)(request.length >> 24), (uint8_t)(request.length >> 16),
				  (uint8_t)(request.length >> 8), (uint8_t)request.length};
	int error = 0;

	call->received.length = 0;
	exchange->received = &call->received;
	if (!begun)
		error = connect_daemon(deadline, &exchange->fd);
	if (error == ENOENT || error == ECONNREFUSED) {
		report(call, NOT_RUNNING, "the Weft daemon is not running on this node", "nobody listens at " SOCKET_PATH);
		return;
	}
	if (error) {
		report(call, NO_ANSWER,
		       error == EAGAIN ? "the Weft daemon accepts no connections in time" : "cannot connect to the Weft daemon at " SOCKET_PATH,
		       error == EAGAIN ? "the backlog of " SOCKET_PATH " is full: see its log on this node" : strerror(error));
		return;
	}
	append(&exchange->sent, prefix, sizeof prefix);
	append(&exchange->sent, request.bytes, request.length);
	exchange->complete = true;
	error = begun ? nghttp2_session_resume_data(exchange->session, exchange->stream) : open_stream(exchange, deadline);
	if (begun && error == NGHTTP2_ERR_INVALID_ARGUMENT)
		error = 0; /* it was not deferred yet, or the stream is gone: the loop finds out */
	if (error)
		report(call, FAULTY, "cannot begin an HTTP/2 session", nghttp2_strerror(error));
	else if (converse(exchange, deadline, call))
		judge(exchange, call);
	end(exchange);
}
