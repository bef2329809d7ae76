/*
 * Functions of glibc that a packaged libnghttp2.a may have been compiled to call (_FORTIFY_SOURCE), for linking it with musl.
 *
 * All else that it calls is plain C, with the same ABI in both. A build of it that calls more fails to link, and never to run.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int __fprintf_chk(FILE *stream, int flag, const char *format, ...);
int __snprintf_chk(char *into, size_t capacity, int flag, size_t size, const char *format, ...);
int __vsnprintf_chk(char *into, size_t capacity, int flag, size_t size, const char *format, va_list arguments);
void *__memcpy_chk(void *into, const void *from, size_t length, size_t size);
void *__memmove_chk(void *into, const void *from, size_t length, size_t size);
void *__memset_chk(void *into, int byte, size_t length, size_t size);

static void require(size_t length, size_t size)
{
	if (length > size)
		abort();
}

int __fprintf_chk(FILE *stream, int flag, const char *format, ...)
{
	va_list arguments;
	int written;

	(void)flag;
	va_start(arguments, format);
	written = vfprintf(stream, format, arguments);
	va_end(arguments);
	return written;
}

int __vsnprintf_chk(char *into, size_t capacity, int flag, size_t size, const char *format, va_list arguments)
{
	(void)flag;
	require(capacity, size);
	return vsnprintf(into, capacity, format, arguments);
}

int __snprintf_chk(char *into, size_t capacity, int flag, size_t size, const char *format, ...)
{
	va_list arguments;
	int written;

	va_start(arguments, format);
	written = __vsnprintf_chk(into, capacity, flag, size, format, arguments);
	va_end(arguments);
	return written;
}

void *__memcpy_chk(void *into, const void *from, size_t length, size_t size)
{
	require(length, size);
	return memcpy(into, from, length);
}

void *__memmove_chk(void *into, const void *from, size_t length, size_t size)
{
	require(length, size);
	return memmove(into, from, length);
}

void *__memset_chk(void *into, int byte, size_t length, size_t size)
{
	require(length, size);
	return memset(into, byte, length);
}
