"""Programs, files, locks, the log, errors: the tools that every other package uses.

Imports nothing from the other packages.
"""
