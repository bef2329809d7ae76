"""Bytes to and from the kernel: netlink sockets and the messages of each family."""
