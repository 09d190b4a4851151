"""The stage ``media``: the installer ISO with its initrd, preseed file and root file system.

Imports from spec and below.
"""
