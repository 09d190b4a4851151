"""Builds an artifact again and compares it file by file.

Imports from pipeline and below.
"""
