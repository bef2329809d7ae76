"""nftables: rules as values, their encoding, what the kernel holds, and the way from one to the other."""
