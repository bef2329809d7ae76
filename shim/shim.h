/* What the parts of the shim share. Each function is described here; its file says why it is done so. */
#ifndef WEFT_SHIM_H
#define WEFT_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef STATE_DIRECTORY
#define STATE_DIRECTORY "/run/weft"
#endif
#define SOCKET_PATH STATE_DIRECTORY "/cni.sock"
#define LOCK_PATH STATE_DIRECTORY "/deletions.lock"
#define DELETIONS_DIRECTORY STATE_DIRECTORY "/deletions"

#define CONFIG_LIMIT ((size_t)1 << 20)   /* bytes of a network configuration */
#define RESPONSE_LIMIT ((size_t)8 << 20) /* bytes of an answer: far beyond any CNI result */
#define TOMBSTONE_LIMIT 4096

/* Codes of the CNI specification, and ours from 100: the same as in daemon/cni/errors.py. */
enum {
	CNI_INCOMPATIBLE_VERSION = 1,
	CNI_INVALID_ENVIRONMENT = 4,
	CNI_IO_FAILURE = 5,
	CNI_DECODING_FAILURE = 6,
	CNI_INVALID_CONFIG = 7,
	CNI_TRY_AGAIN_LATER = 11,
	CNI_NOT_AVAILABLE = 50,
	WEFT_FAULT = 100,
	WEFT_FAULTY_ATTACHMENT = 106,
};

/* buffer.c */
struct buffer {
	uint8_t *bytes;
	size_t length, capacity;
};
struct slice { /* part of somebody else's bytes; bytes is NULL where there is none */
	const uint8_t *bytes;
	size_t length;
};
void append(struct buffer *buffer, const void *bytes, size_t length);
void append_text(struct buffer *buffer, const char *text);
/* Reads until the end of the file into an empty buffer; 0, or the errno: EFBIG above limit, ETIMEDOUT past the deadline. */
int read_all(int fd, struct buffer *buffer, size_t limit, int64_t deadline);
/* 0, or the errno. */
int write_all(int fd, const void *bytes, size_t length);
/* Milliseconds of the monotonic clock. */
int64_t now_ms(void);
/* Milliseconds until the deadline, never below 0, as poll(2) takes them. */
int remaining_ms(int64_t deadline);

/* json.c */
/* The value of a member of the outermost object, without the space around it; keys compare without regard to case. */
struct slice json_member(struct slice json, const char *name);
/* Appends text as a JSON string with its quotes; bytes that are not UTF-8 become U+FFFD. */
void json_append_string(struct buffer *buffer, const char *text);
/* Length of the UTF-8 sequence at the start of at most length bytes, 0 if there is none. */
size_t utf8_sequence(const uint8_t *bytes, size_t length);
bool is_utf8(const char *text);

/* output.c */
/* The configuration that results and errors take their cniVersion from. */
void output_set_config(struct slice config);
/* The requested cniVersion if it looks like one, else the newest that Weft speaks. */
const char *requested_version(void);
/* Whether the requested version is one of those that Weft speaks. */
bool version_is_supported(void);
/* Prints the bytes on standard output and exits; with CNI_IO_FAILURE if they cannot be written. */
_Noreturn void finish(const void *output, size_t length, int exit_code);
/* Prints a CNI error object and exits with 1. */
_Noreturn void fail(int code, const char *message, const char *details);
_Noreturn void print_version(void);

/* request.c */
struct response {
	struct slice output;
	int32_t exit_code;
};
/* An environment variable, "" where it is missing. */
const char *environment(const char *name);
/* Appends the serialized weft.cni.v1.ExecuteRequest of this process's environment and the configuration. */
void encode_request(struct buffer *buffer, struct slice config);
/* False if the bytes are no weft.cni.v1.ExecuteResponse. */
bool decode_response(struct slice bytes, struct response *response);

/* call.c */
enum outcome {
	ANSWERED,    /* the daemon's own answer */
	NOT_RUNNING, /* nobody listens: nothing was executed */
	NO_ANSWER,   /* too late, gone, or refused: it may have been executed */
	FAULTY,      /* an answer that is no answer: trying again may not help */
};
struct call {
	enum outcome outcome;
	struct response response;
	struct buffer received; /* backs response.output */
	char message[160], details[1200];
};
/* Begins a call while its request is not there yet, without waiting for anything; NULL if that can't be. Once in a process. */
struct exchange *begin(int64_t deadline);
/* Calls weft.cni.v1.Cni/Execute, goes on with what was begun if not NULL; returns by the deadline at the latest. */
void execute(struct exchange *begun, struct slice request, int64_t deadline, struct call *call);

/* sandbox.c */
/* Moves this process into the network namespace at path; 0, or the errno: EINVAL if it is none. */
int enter_namespace(const char *path);
/* Whether the namespace can be entered and holds no link of that name; this process is then inside. */
bool sandbox_lacks_link(const char *path, const char *name);
/* Raises or lowers a link; 0, or the errno. */
int set_link_up(const char *name, bool up);
/* 1 or 0, or the negative errno. */
int link_is_up(const char *name);
/* Whether the address belongs to this namespace. */
bool has_loopback_address(int family);

/* tombstone.c */
/* Records the deletion, unless the daemon answers meanwhile; exits. See README.md for the protocol. */
_Noreturn void record_deletion(struct slice request, int64_t deadline);

/* main.c */
/* Prints the daemon's answer and exits as it says. */
_Noreturn void deliver(const struct call *call);

/* loopback.c */
_Noreturn void loopback(const char *command, struct slice config);

#endif
