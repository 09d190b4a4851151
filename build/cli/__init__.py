"""The command line: one module for each command, which parses, calls, prints and returns the exit code.

Imports from every package.
"""
