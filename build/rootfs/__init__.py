"""The stages ``base`` and ``rootfs``: packages installed into a tree, then the layers of the overlay.

Imports from spec and below.
"""
