"""A whole cluster of namespaces on one machine: real daemons, real shim, real kernel, embedded API server."""
