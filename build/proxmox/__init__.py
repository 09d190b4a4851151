"""The Proxmox VE API: client, errors, guests, labels, privileges, checks before a change.

Imports from artifact and below.
"""
