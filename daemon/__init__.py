"""The daemon: one process per node that watches the cluster, serves the runtime and keeps the kernel right."""
