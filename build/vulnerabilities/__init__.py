"""Known vulnerabilities of the packages of an image, from files named by the user.

Imports from packages and core.
"""
