"""The image without one of its layers, each in turn: built, booted in a container, and tested."""
