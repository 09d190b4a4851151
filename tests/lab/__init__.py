"""The lab: real machines behind the fake Proxmox VE. It is no Proxmox.

The API is tests/fakes/proxmox.py; disks are qcow2 files, a start is a QEMU, and the guest agent's answers are the guest's
own. So `publish` and `clone` meet a firmware, a kernel, cloud-init and an agent on their way, unmodified. What stays
untested is what Proxmox itself does: its storages, its cluster, its permissions beyond what the fake knows.
"""
