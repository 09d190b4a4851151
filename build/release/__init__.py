"""Channels and releases: the ledger, promotion, revocation, pruning.

Imports from proxmox and below.
"""
