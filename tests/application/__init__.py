"""The application itself, run on the host: its own files, rendered, with the very wheels that the image's lock names."""
