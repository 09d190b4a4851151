"""A virtual machine is cloned from a published template, configured, started and awaited.

Imports from release and below.
"""
