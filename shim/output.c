/* What goes to standard output: results, CNI error objects, versions. Every way out of the program ends here. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shim.h"

static const char *const supported_versions[] = {"0.3.1", "0.4.0", "1.0.0", "1.1.0"};
#define SUPPORTED (sizeof supported_versions / sizeof *supported_versions)

static char version[16];

void output_set_config(struct slice config)
{
	struct slice value = json_member(config, "cniVersion");

	/* Digits and dots in quotes, or it is not echoed. */
	if (value.length < 3 || value.length - 2 >= sizeof version || value.bytes[0] != '"')
		return;
	for (size_t i = 1; i < value.length - 1; i++)
		if (!strchr("0123456789.", value.bytes[i]) || !value.bytes[i])
			return;
	memcpy(version, value.bytes + 1, value.length - 2);
}

const char *requested_version(void)
{
	return *version ? version : supported_versions[SUPPORTED - 1];
}

bool version_is_supported(void)
{
	for (size_t i = 0; i < SUPPORTED; i++)
		if (strcmp(version, supported_versions[i]) == 0)
			return true;
	return false;
}

_Noreturn void finish(const void *output, size_t length, int exit_code)
{
	int error = write_all(STDOUT_FILENO, output, length);

	if (error) {
		/* A result that nobody read is a failure: the runtime then deletes what it does not know to exist. */
		fprintf(stderr, "weft: cannot write the result to standard output: %s\n", strerror(error));
		exit(CNI_IO_FAILURE);
	}
	exit(exit_code);
}

_Noreturn void fail(int code, const char *message, const char *details)
{
	struct buffer object = {0};
	char number[16];

	snprintf(number, sizeof number, "%d", code);
	append_text(&object, "{\"cniVersion\":");
	json_append_string(&object, requested_version());
	append_text(&object, ",\"code\":");
	append_text(&object, number);
	append_text(&object, ",\"msg\":");
	json_append_string(&object, message);
	if (*details) {
		append_text(&object, ",\"details\":");
		json_append_string(&object, details);
	}
	append_text(&object, "}\n");
	finish(object.bytes, object.length, 1);
}

_Noreturn void print_version(void)
{
	struct buffer object = {0};

	append_text(&object, "{\"cniVersion\":");
	json_append_string(&object, requested_version());
	append_text(&object, ",\"supportedVersions\":[");
	for (size_t i = 0; i < SUPPORTED; i++) {
		append_text(&object, i ? "," : "");
		json_append_string(&object, supported_versions[i]);
	}
	append_text(&object, "]}\n");
	finish(object.bytes, object.length, 0);
}
