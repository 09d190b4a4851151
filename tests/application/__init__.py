"""The application itself, run on the host: its rendered files, with the same wheels as in the image's lock."""
