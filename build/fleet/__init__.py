"""The machines of a cluster: what each is, and how it differs from its template.

Imports from core, spec, report, proxmox, release, clone and replace.
"""
