"""The stage ``artifact`` and what it leaves: manifest, SBOM, provenance, signatures, and their verification.

Imports from verify, rootfs and below.
"""
