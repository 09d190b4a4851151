"""Debian packages, wheels and the files that lock them: read, resolve, fetch, compare.

Imports from core.
"""
