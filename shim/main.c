/* The verbs: what each one's deadline is, and what it means when the daemon gives no answer. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shim.h"

static const struct verb {
	const char *command;
	int limit_ms; /* from the start of this program to its end */
	int unanswered; /* the CNI error code without an answer of the daemon */
} verbs[] = {
	{"ADD", 90000, CNI_TRY_AGAIN_LATER},   /* kubelet gives up after 2 minutes */
	{"CHECK", 30000, CNI_TRY_AGAIN_LATER},
	{"DEL", 10000, 0},                     /* recorded instead */
	{"GC", 60000, CNI_TRY_AGAIN_LATER},
	{"STATUS", 900, CNI_NOT_AVAILABLE},    /* polled, under a lock of the runtime's */
	{NULL, 10000, CNI_TRY_AGAIN_LATER},
};

static const struct verb *find_verb(const char *command)
{
	const struct verb *verb = verbs;

	while (verb->command && strcmp(verb->command, command) != 0)
		verb++;
	return verb;
}

/* A closed standard descriptor would be taken by the next open(2), and the result be written into it. */
static void occupy_standard_descriptors(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
}

static bool is_loopback(const char *name)
{
	const char *slash = name ? strrchr(name, '/') : NULL;

	return name && strcmp(slash ? slash + 1 : name, "loopback") == 0;
}

static void read_config(struct buffer *config, int64_t deadline)
{
	int error = read_all(STDIN_FILENO, config, CONFIG_LIMIT, deadline);

	output_set_config((struct slice){config->bytes, config->length});
	if (error == EFBIG)
		fail(CNI_INVALID_CONFIG, "the network configuration is larger than 1 MiB", "");
	if (error == ETIMEDOUT)
		fail(CNI_IO_FAILURE, "standard input was not closed in time", "the runtime is to close it after the configuration");
	if (error)
		fail(CNI_IO_FAILURE, "cannot read the network configuration from standard input", strerror(error));
}

_Noreturn void deliver(const struct call *call)
{
	int code = call->response.exit_code;

	if (code != 0 && call->response.output.length == 0)
		fail(WEFT_FAULT, "the Weft daemon reported a failure without an error object", "see its log on this node");
	/* Only the low byte of an exit code survives: a failure must not become success by it. */
	finish(call->response.output.bytes, call->response.output.length, code == 0 || (code > 0 && code < 256) ? code : 1);
}

/* A DEL that the daemon did not answer. */
static _Noreturn void delete_later(struct slice request, int64_t deadline, const struct call *call)
{
	const char *container = environment("CNI_CONTAINERID"), *link = environment("CNI_IFNAME");

	/* What the daemon would have refused must not wait for it. */
	if (!*container || !*link)
		fail(CNI_INVALID_ENVIRONMENT,
		     *container ? "required env variables [CNI_IFNAME] missing"
		     : *link    ? "required env variables [CNI_CONTAINERID] missing"
				: "required env variables [CNI_CONTAINERID,CNI_IFNAME] missing",
		     "");
	/* Runtimes retry and delete for as long as the daemon is away; a retry that wired nothing leaves nothing to delete. */
	if (call->outcome == NOT_RUNNING && sandbox_lacks_link(environment("CNI_NETNS"), link))
		finish("", 0, 0);
	record_deletion(request, deadline);
}

int main(int argc, char **argv)
{
	const char *command = environment("CNI_COMMAND");
	const struct verb *verb = find_verb(command);
	int64_t deadline = now_ms() + verb->limit_ms;
	struct buffer config = {0}, request = {0};
	struct call call = {.outcome = NO_ANSWER};
	struct exchange *begun = NULL;
	bool loops = is_loopback(argc > 0 ? argv[0] : NULL), daemonless = strcmp(command, "VERSION") == 0 || loops;

	occupy_standard_descriptors();
	signal(SIGPIPE, SIG_IGN);
	if (!*command) {
		fprintf(stderr, "weft: the CNI plugin of Weft, executed by container runtimes; CNI versions 0.3.1, 0.4.0, 1.0.0, 1.1.0\n");
		return 0;
	}
	if (!daemonless)
		begun = begin(deadline);
	read_config(&config, deadline);
	if (strcmp(command, "VERSION") == 0)
		print_version();
	if (loops)
		loopback(command, (struct slice){config.bytes, config.length});
	encode_request(&request, (struct slice){config.bytes, config.length});
	execute(begun, (struct slice){request.bytes, request.length}, deadline, &call);
	if (call.outcome == ANSWERED)
		deliver(&call);
	if (strcmp(command, "DEL") == 0)
		delete_later((struct slice){request.bytes, request.length}, deadline, &call);
	fail(call.outcome == FAULTY && verb->unanswered == CNI_TRY_AGAIN_LATER ? WEFT_FAULT : verb->unanswered, call.message,
	     call.details);
}
