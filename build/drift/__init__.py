"""Compares a cluster with the artifacts and the ledger.

Imports from release and below.
"""
