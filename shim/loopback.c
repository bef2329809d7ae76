/*
 * The `loopback` plugin, which runtimes execute beside the network proper: it needs no daemon.
 *
 * The kernel gives a loopback link its addresses when it goes up, so there is nothing else to do. As in the plugin of the
 * CNI project, the link is `lo` whatever CNI_IFNAME says, and an earlier plugin's result is passed on.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "shim.h"

#define LINK "lo"

/* 0.3.1 and 0.4.0 name the family of each address, later versions don't. */
static void append_address(struct buffer *result, const char *address, const char *family)
{
	bool named = requested_version()[0] == '0';

	if (result->bytes[result->length - 1] == '}')
		append_text(result, ",");
	append_text(result, "{");
	if (named) {
		append_text(result, "\"version\":\"");
		append_text(result, family);
		append_text(result, "\",");
	}
	append_text(result, "\"interface\":0,\"address\":\"");
	append_text(result, address);
	append_text(result, "\"}");
}

static _Noreturn void print_result(struct slice config)
{
	struct slice previous = json_member(config, "prevResult");
	struct buffer result = {0};

	if (previous.length > 0 && previous.bytes[0] == '{') {
		append(&result, previous.bytes, previous.length);
	} else {
		append_text(&result, "{\"cniVersion\":");
		json_append_string(&result, requested_version());
		append_text(&result, ",\"interfaces\":[{\"name\":\"" LINK "\",\"mac\":\"00:00:00:00:00:00\",\"sandbox\":");
		json_append_string(&result, environment("CNI_NETNS"));
		append_text(&result, "}],\"ips\":[");
		if (has_loopback_address(AF_INET))
			append_address(&result, "127.0.0.1/8", "4");
		if (has_loopback_address(AF_INET6))
			append_address(&result, "::1/128", "6");
		append_text(&result, "],\"dns\":{}}");
	}
	append_text(&result, "\n");
	finish(result.bytes, result.length, 0);
}

static void require_namespace(void)
{
	const char *path = environment("CNI_NETNS");
	int error;

	if (!*path)
		fail(CNI_INVALID_ENVIRONMENT, "required env variables [CNI_NETNS] missing", "");
	error = enter_namespace(path);
	if (error == EINVAL)
		fail(CNI_INVALID_ENVIRONMENT, "CNI_NETNS is not a network namespace", path);
	if (error)
		fail(CNI_IO_FAILURE, strerror(error), path);
}

_Noreturn void loopback(const char *command, struct slice config)
{
	bool add = strcmp(command, "ADD") == 0, check = strcmp(command, "CHECK") == 0;
	int state;

	if (strcmp(command, "DEL") == 0) {
		/* Nothing to undo when the namespace is gone, and nothing to fail for when it is not. */
		if (*environment("CNI_NETNS") && enter_namespace(environment("CNI_NETNS")) == 0)
			(void)set_link_up(LINK, false);
		finish("", 0, 0);
	}
	if (strcmp(command, "GC") == 0 || strcmp(command, "STATUS") == 0)
		finish("", 0, 0);
	if (!add && !check)
		fail(CNI_INVALID_ENVIRONMENT, "unknown CNI_COMMAND", command);
	if (!version_is_supported() || (check && strcmp(requested_version(), "0.3.1") == 0))
		fail(CNI_INCOMPATIBLE_VERSION, "incompatible CNI version: supported are 0.3.1 (not for CHECK), 0.4.0, 1.0.0, 1.1.0", "");
	require_namespace();
	if (add) {
		int error = set_link_up(LINK, true);

		if (error)
			fail(CNI_IO_FAILURE, "cannot bring up " LINK " in the sandbox", strerror(error));
		print_result(config);
	}
	state = link_is_up(LINK);
	if (state < 0)
		fail(CNI_IO_FAILURE, "cannot read the state of " LINK " in the sandbox", strerror(-state));
	if (state == 0)
		fail(WEFT_FAULTY_ATTACHMENT, LINK " is down in the sandbox", environment("CNI_NETNS"));
	finish("", 0, 0);
}
