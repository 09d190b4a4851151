"""The stage ``artifact`` and its results: manifest, SBOMs, provenance, signatures, and their verification.

Imports from verify, rootfs and below.
"""
