"""What weftctl asks the daemon. Reads the store, IPAM and the kernel; changes nothing."""
