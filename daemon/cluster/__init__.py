"""The cluster as seen through the API server: connection, list-watch, values, store."""
