"""Pure functions from the cluster's values to fragments of the desired state."""
