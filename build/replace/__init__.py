"""Replaces the operating system of a machine whose data are on a data disk, and undoes it.

Imports from core, artifact, proxmox, release, spec and clone.
"""
