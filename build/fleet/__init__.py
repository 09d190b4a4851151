"""The machines of a cluster: the state of each, and its differences from its template.

Imports from core, spec, report, proxmox, release, clone and replace.
"""
