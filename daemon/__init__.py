"""The daemon: one process per node, watching the cluster, serving the runtime, keeping the kernel right."""
