/*
 * The little JSON that the shim needs: one member of an object, and strings to print.
 *
 * The scanner finds the extent of values; it does not validate them. The daemon does, so that there is one parser to agree with.
 */
#include <ctype.h>
#include <string.h>
#include <strings.h>

#include "shim.h"

struct scanner {
	const uint8_t *next, *end;
};

static void skip_space(struct scanner *scanner)
{
	while (scanner->next < scanner->end && strchr(" \t\r\n", *scanner->next) && *scanner->next)
		scanner->next++;
}

static bool skip_character(struct scanner *scanner, uint8_t character)
{
	skip_space(scanner);
	if (scanner->next == scanner->end || *scanner->next != character)
		return false;
	scanner->next++;
	return true;
}

static bool skip_string(struct scanner *scanner)
{
	if (!skip_character(scanner, '"'))
		return false;
	while (scanner->next < scanner->end) {
		uint8_t character = *scanner->next++;

		if (character == '"')
			return true;
		if (character == '\\' && scanner->next < scanner->end)
			scanner->next++;
	}
	return false;
}

/* Past a value of any kind. Brackets are counted, not matched: an unbalanced value has no end. */
static bool skip_value(struct scanner *scanner)
{
	size_t depth = 0;

	skip_space(scanner);
	if (scanner->next == scanner->end)
		return false;
	do {
		uint8_t character = *scanner->next;

		if (character == '"') {
			if (!skip_string(scanner))
				return false;
			continue;
		}
		if (character == '{' || character == '[') {
			depth++;
		} else if (character == '}' || character == ']' || character == ',') {
			if (depth == 0)
				return true;
			if (character != ',' && --depth == 0) {
				scanner->next++;
				return true;
			}
		}
		scanner->next++;
	} while (scanner->next < scanner->end && (depth > 0 || !strchr(",}] \t\r\n", *scanner->next)));
	return depth == 0;
}

struct slice json_member(struct slice json, const char *name)
{
	struct scanner scanner = {json.bytes, json.bytes + json.length};
	struct slice found = {NULL, 0};

	if (json.length == 0 || !skip_character(&scanner, '{'))
		return found;
	do {
		struct slice key, value;

		skip_space(&scanner);
		key.bytes = scanner.next + 1;
		if (!skip_string(&scanner))
			return found;
		key.length = (size_t)(scanner.next - key.bytes) - 1;
		if (!skip_character(&scanner, ':'))
			return found;
		skip_space(&scanner);
		value.bytes = scanner.next;
		if (!skip_value(&scanner))
			return found;
		value.length = (size_t)(scanner.next - value.bytes);
		/* The last one wins, and case does not matter: so Go's decoder reads it. */
		if (key.length == strlen(name) && strncasecmp((const char *)key.bytes, name, key.length) == 0)
			found = value;
	} while (skip_character(&scanner, ','));
	return found;
}

size_t utf8_sequence(const uint8_t *bytes, size_t length)
{
	size_t size = bytes[0] < 0x80 ? 1 : bytes[0] < 0xc2 ? 0 : bytes[0] < 0xe0 ? 2 : bytes[0] < 0xf0 ? 3 : bytes[0] < 0xf5 ? 4 : 0;

	if (size == 0 || size > length)
		return 0;
	for (size_t i = 1; i < size; i++)
		if ((bytes[i] & 0xc0) != 0x80)
			return 0;
	/* Overlong forms, surrogates, and what lies beyond U+10FFFF: RFC 3629, section 4. */
	if ((bytes[0] == 0xe0 && bytes[1] < 0xa0) || (bytes[0] == 0xed && bytes[1] > 0x9f) ||
	    (bytes[0] == 0xf0 && bytes[1] < 0x90) || (bytes[0] == 0xf4 && bytes[1] > 0x8f))
		return 0;
	return size;
}

bool is_utf8(const char *text)
{
	const uint8_t *next = (const uint8_t *)text, *end = next + strlen(text);

	while (next < end) {
		size_t size = utf8_sequence(next, (size_t)(end - next));

		if (size == 0)
			return false;
		next += size;
	}
	return true;
}

void json_append_string(struct buffer *buffer, const char *text)
{
	static const char digits[] = "0123456789abcdef";
	const uint8_t *next = (const uint8_t *)text, *end = next + strlen(text);

	append_text(buffer, "\"");
	while (next < end) {
		size_t size = utf8_sequence(next, (size_t)(end - next));

		if (size == 0) {
			append_text(buffer, "\xef\xbf\xbd");
			size = 1;
		} else if (*next == '"' || *next == '\\') {
			append_text(buffer, "\\");
			append(buffer, next, 1);
		} else if (*next < 0x20 || *next == 0x7f) {
			char escaped[] = {'\\', 'u', '0', '0', digits[*next >> 4], digits[*next & 15]};

			append(buffer, escaped, sizeof escaped);
		} else {
			append(buffer, next, size);
		}
		next += size;
	}
	append_text(buffer, "\"");
}
