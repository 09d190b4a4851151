"""Measures builds, boots and the performance cost of the hardening.

Imports from audit, pipeline and below.
"""
