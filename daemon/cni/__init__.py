"""Answers the container runtime: CNI requests in, pods wired and addresses held, results out."""
