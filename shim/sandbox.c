/* Network namespaces by path, and the few questions and changes that the shim itself has for them. */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "shim.h"

int enter_namespace(const char *path)
{
	struct statfs about;
	int error = 0, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return errno;
	/* A runtime's mount point stays behind as a plain file when the namespace is gone. */
	if (fstatfs(fd, &about) || (unsigned long)about.f_type != NSFS_MAGIC)
		error = EINVAL;
	else if (setns(fd, CLONE_NEWNET))
		error = errno;
	close(fd);
	return error;
}

/* The request and the socket for an ioctl about a link; the socket, or -1 with errno. */
static int link_request(const char *name, struct ifreq *request)
{
	memset(request, 0, sizeof *request);
	if (strlen(name) >= IFNAMSIZ) {
		errno = ENODEV;
		return -1;
	}
	memcpy(request->ifr_name, name, strlen(name));
	return socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

bool sandbox_lacks_link(const char *path, const char *name)
{
	struct ifreq request;
	int fd;
	bool lacking;

	if (!*path || enter_namespace(path))
		return false;
	fd = link_request(name, &request);
	lacking = fd >= 0 && ioctl(fd, SIOCGIFINDEX, &request) && errno == ENODEV;
	if (fd >= 0)
		close(fd);
	return lacking;
}

int link_is_up(const char *name)
{
	struct ifreq request;
	int fd = link_request(name, &request), result;

	if (fd < 0)
		return -errno;
	result = ioctl(fd, SIOCGIFFLAGS, &request) ? -errno : (request.ifr_flags & IFF_UP) != 0;
	close(fd);
	return result;
}

int set_link_up(const char *name, bool up)
{
	struct ifreq request;
	int fd = link_request(name, &request), error = 0;

	if (fd < 0)
		return errno;
	if (ioctl(fd, SIOCGIFFLAGS, &request)) {
		error = errno;
	} else {
		request.ifr_flags = (short)(up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
		if (ioctl(fd, SIOCSIFFLAGS, &request))
			error = errno;
	}
	close(fd);
	return error;
}

bool has_loopback_address(int family)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	const void *address = family == AF_INET ? (const void *)&v4 : (const void *)&v6;
	socklen_t length = family == AF_INET ? sizeof v4 : sizeof v6;
	int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool bound = fd >= 0 && bind(fd, address, length) == 0;

	if (fd >= 0)
		close(fd);
	return bound;
}
