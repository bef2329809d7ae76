/*
 * The messages of proto/cni.proto, by hand: seven fields out, two in.
 *
 * Wire format: https://protobuf.dev/programming-guides/encoding/. Unknown fields of an answer are skipped, as changes of the
 * contract are additive.
 */
#include <stdlib.h>
#include <string.h>

#include "shim.h"

enum wire_type { VARINT = 0, FIXED64 = 1, DELIMITED = 2, FIXED32 = 5 };

/* In the order of their field numbers, from 1; the configuration follows. */
static const char *const variables[] = {
	"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH",
};
#define VARIABLES (sizeof variables / sizeof *variables)

const char *environment(const char *name)
{
	const char *value = getenv(name);

	return value ? value : "";
}

static void append_varint(struct buffer *buffer, uint64_t value)
{
	do {
		uint8_t byte = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));

		append(buffer, &byte, 1);
		value >>= 7;
	} while (value);
}

static void append_field(struct buffer *buffer, uint64_t number, const void *bytes, size_t length)
{
	if (length == 0)
		return;
	append_varint(buffer, number << 3 | DELIMITED);
	append_varint(buffer, length);
	append(buffer, bytes, length);
}

void encode_request(struct buffer *buffer, struct slice config)
{
	for (size_t i = 0; i < VARIABLES; i++) {
		const char *value = environment(variables[i]);

		if (!is_utf8(value)) /* a protobuf string must be */
			fail(CNI_INVALID_ENVIRONMENT, "an environment variable is not valid UTF-8", variables[i]);
		append_field(buffer, i + 1, value, strlen(value));
	}
	append_field(buffer, VARIABLES + 1, config.bytes, config.length);
}

static bool read_varint(struct slice *bytes, uint64_t *value)
{
	*value = 0;
	for (unsigned shift = 0; shift < 64 && bytes->length > 0; shift += 7) {
		uint8_t byte = *bytes->bytes++;

		bytes->length--;
		*value |= (uint64_t)(byte & 0x7f) << shift;
		if (byte < 0x80)
			return true;
	}
	return false;
}

bool decode_response(struct slice bytes, struct response *response)
{
	*response = (struct response){{NULL, 0}, 0};
	while (bytes.length > 0) {
		uint64_t tag, value;
		size_t skipped = 0;

		if (!read_varint(&bytes, &tag) || tag > UINT32_MAX || tag >> 3 == 0)
			return false;
		switch (tag & 7) {
		case VARINT:
			if (!read_varint(&bytes, &value))
				return false;
			if (tag >> 3 == 2)
				response->exit_code = (int32_t)(uint32_t)value;
			break;
		case DELIMITED:
			if (!read_varint(&bytes, &value) || value > bytes.length)
				return false;
			skipped = (size_t)value;
			if (tag >> 3 == 1)
				response->output = (struct slice){bytes.bytes, skipped};
			break;
		case FIXED64:
			skipped = 8;
			break;
		case FIXED32:
			skipped = 4;
			break;
		default:
			return false;
		}
		if (skipped > bytes.length)
			return false;
		bytes.bytes += skipped;
		bytes.length -= skipped;
	}
	return true;
}
