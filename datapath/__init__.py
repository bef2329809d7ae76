"""The kernel: desired state, observation, the difference, the writer, pod wiring. Knows no Kubernetes."""
