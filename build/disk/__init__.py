"""The stage ``disk``: Packer runs the Debian installer in QEMU, and the disk is compacted.

Imports from machines, media and below.
"""
