"""The embedded API server: storage, patches, selectors and the HTTP face of them."""
