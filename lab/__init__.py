"""A whole cluster of network namespaces on one machine: real daemons, real shim, real kernel, embedded API server."""
