// The least that wiring a dual-stack pod can cost: 13 writes in C, one send for the pair and one for each
// namespace, nothing looked up that an answer tells. bench/pods.py builds and loads it; it undoes nothing.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/ip.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const uint8_t gateway4[4] = {169, 254, 1, 1};
static const uint8_t gateway6[16] = {0xfe, 0x80, [15] = 1};
static const uint8_t host_mac[6] = {0xee, 0xee, 0xee, 0xee, 0xee, 0xee};

struct batch {
	uint32_t used, count;
	struct nlmsghdr *last;
	_Alignas(4) char bytes[4096];
};

static void *append(struct batch *b, const void *data, size_t size)
{
	char *at = b->bytes + b->used;
	memset(at, 0, NLMSG_ALIGN(size));
	if (data)
		memcpy(at, data, size);
	b->used += NLMSG_ALIGN(size);
	if (b->last)
		b->last->nlmsg_len = (uint32_t)(b->bytes + b->used - (char *)b->last);
	return at;
}

static void begin(struct batch *b, uint16_t type, uint16_t flags, const void *body, size_t size)
{
	struct nlmsghdr head = {.nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | flags, .nlmsg_seq = ++b->count};
	b->last = NULL;
	b->last = append(b, &head, sizeof head);
	append(b, body, size);
}

static struct rtattr *open_nest(struct batch *b, uint16_t type)
{
	struct rtattr head = {.rta_type = type};
	return append(b, &head, sizeof head);
}

static void close_nest(struct batch *b, struct rtattr *nest)
{
	nest->rta_len = (uint16_t)(b->bytes + b->used - (char *)nest);
}

static void attribute(struct batch *b, uint16_t type, const void *data, size_t size)
{
	struct rtattr head = {.rta_type = type, .rta_len = (uint16_t)(sizeof head + size)};
	append(b, &head, sizeof head);
	append(b, data, size);
}

// Sends with an acknowledgement on the last message. Returns 0 or -errno; an echoed link gives both indices.
static int transact(int fd, struct batch *b, int *index, int *peer)
{
	char buffer[16384];
	int result = 0;

	b->last->nlmsg_flags |= NLM_F_ACK;
	if (send(fd, b->bytes, b->used, 0) < 0)
		return -errno;
	for (;;) {
		ssize_t got = recv(fd, buffer, sizeof buffer, 0);
		if (got < 0)
			return -errno;
		unsigned left = (unsigned)got;
		for (struct nlmsghdr *m = (void *)buffer; NLMSG_OK(m, left); m = NLMSG_NEXT(m, left)) {
			if (m->nlmsg_type == NLMSG_ERROR) {
				int code = ((struct nlmsgerr *)NLMSG_DATA(m))->error;
				result = result ? result : code;
				if (m->nlmsg_seq == b->count)
					return result;
			} else if (m->nlmsg_type == RTM_NEWLINK && index) {
				struct ifinfomsg *link = NLMSG_DATA(m);
				int size = (int)(m->nlmsg_len - NLMSG_LENGTH(sizeof *link));
				*index = link->ifi_index;
				for (struct rtattr *a = IFLA_RTA(link); RTA_OK(a, size); a = RTA_NEXT(a, size))
					if (a->rta_type == IFLA_LINK)
						*peer = *(int *)RTA_DATA(a);
			}
		}
	}
}

static void route(struct batch *b, uint8_t family, uint8_t bits, uint8_t scope, const void *to, const void *via, int link)
{
	struct rtmsg body = {.rtm_family = family, .rtm_dst_len = bits, .rtm_table = RT_TABLE_MAIN,
			     .rtm_protocol = RTPROT_BOOT, .rtm_scope = scope, .rtm_type = RTN_UNICAST};
	size_t size = family == AF_INET ? 4 : 16;
	begin(b, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body, sizeof body);
	if (to)
		attribute(b, RTA_DST, to, size);
	if (via)
		attribute(b, RTA_GATEWAY, via, size);
	attribute(b, RTA_OIF, &link, sizeof link);
}

static void address(struct batch *b, uint8_t family, const void *own, int link)
{
	struct ifaddrmsg body = {.ifa_family = family, .ifa_prefixlen = family == AF_INET ? 32 : 128,
				 .ifa_flags = family == AF_INET ? 0 : IFA_F_NODAD, .ifa_index = (uint32_t)link};
	size_t size = family == AF_INET ? 4 : 16;
	begin(b, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body, sizeof body);
	attribute(b, IFA_LOCAL, own, size);
	attribute(b, IFA_ADDRESS, own, size);
}

static void neighbour(struct batch *b, uint8_t family, const void *to, int link)
{
	struct ndmsg body = {.ndm_family = family, .ndm_ifindex = link, .ndm_state = NUD_PERMANENT};
	begin(b, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &body, sizeof body);
	attribute(b, NDA_DST, to, family == AF_INET ? 4 : 16);
	attribute(b, NDA_LLADDR, host_mac, sizeof host_mac);
}

static void up(struct batch *b, int link)
{
	struct ifinfomsg body = {.ifi_index = link, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
	begin(b, RTM_NEWLINK, 0, &body, sizeof body);
}

int floor_socket(void)
{
	struct sockaddr_nl any = {.nl_family = AF_NETLINK};
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (fd >= 0)
		bind(fd, (void *)&any, sizeof any);
	return fd;
}

// Wires one pod; returns the index of the node's end or -errno.
int floor_attach(int host, int home, const char *netns, const char *name, const uint8_t *own4,
		 const uint8_t *own6, const uint8_t *mac, uint32_t mtu)
{
	struct batch b = {0};
	struct ifinfomsg none = {0};
	int index = 0, peer = 0, result, pod = -1;
	int space = open(netns, O_RDONLY | O_CLOEXEC);

	if (space < 0)
		return -errno;
	begin(&b, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO, &none, sizeof none);
	attribute(&b, IFLA_IFNAME, name, strlen(name) + 1);
	attribute(&b, IFLA_MTU, &mtu, sizeof mtu);
	attribute(&b, IFLA_ADDRESS, host_mac, sizeof host_mac);
	struct rtattr *info = open_nest(&b, IFLA_LINKINFO);
	attribute(&b, IFLA_INFO_KIND, "veth", 4);
	struct rtattr *data = open_nest(&b, IFLA_INFO_DATA), *other = open_nest(&b, VETH_INFO_PEER);
	append(&b, &none, sizeof none);
	attribute(&b, IFLA_IFNAME, "eth0", 5);
	attribute(&b, IFLA_MTU, &mtu, sizeof mtu);
	attribute(&b, IFLA_ADDRESS, mac, 6);
	attribute(&b, IFLA_NET_NS_FD, &space, sizeof space);
	close_nest(&b, other);
	close_nest(&b, data);
	close_nest(&b, info);
	result = transact(host, &b, &index, &peer);
	if (result)
		goto done;

	b = (struct batch){0};
	up(&b, index);
	uint32_t one = 1;
	uint8_t no_link_local = 1;
	struct rtattr *spec = open_nest(&b, IFLA_AF_SPEC | NLA_F_NESTED), *inet = open_nest(&b, AF_INET | NLA_F_NESTED);
	struct rtattr *settings = open_nest(&b, IFLA_INET_CONF | NLA_F_NESTED);
	attribute(&b, IPV4_DEVCONF_PROXY_ARP, &one, sizeof one);
	attribute(&b, IPV4_DEVCONF_FORWARDING, &one, sizeof one);
	close_nest(&b, settings);
	close_nest(&b, inet);
	struct rtattr *inet6 = open_nest(&b, AF_INET6 | NLA_F_NESTED);
	attribute(&b, IFLA_INET6_ADDR_GEN_MODE, &no_link_local, sizeof no_link_local);
	close_nest(&b, inet6);
	close_nest(&b, spec);
	route(&b, AF_INET, 32, RT_SCOPE_LINK, own4, NULL, index);
	route(&b, AF_INET6, 128, RT_SCOPE_UNIVERSE, own6, NULL, index);
	result = transact(host, &b, NULL, NULL);
	if (result)
		goto done;

	if (setns(space, CLONE_NEWNET)) {
		result = -errno;
		goto done;
	}
	pod = floor_socket();
	if (setns(home, CLONE_NEWNET) || pod < 0) {
		result = -errno;
		goto done;
	}
	b = (struct batch){0};
	up(&b, 1);
	address(&b, AF_INET, own4, peer);
	address(&b, AF_INET6, own6, peer);
	up(&b, peer);
	route(&b, AF_INET, 32, RT_SCOPE_LINK, gateway4, NULL, peer);
	route(&b, AF_INET, 0, RT_SCOPE_UNIVERSE, NULL, gateway4, peer);
	route(&b, AF_INET6, 0, RT_SCOPE_UNIVERSE, NULL, gateway6, peer);
	neighbour(&b, AF_INET, gateway4, peer);
	neighbour(&b, AF_INET6, gateway6, peer);
	result = transact(pod, &b, NULL, NULL);
done:
	if (pod >= 0)
		close(pod);
	close(space);
	return result ? result : index;
}
