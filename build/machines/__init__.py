"""Test environments: QEMU virtual machines and systemd-nspawn containers, with shell access.

Imports from spec and below.
"""
