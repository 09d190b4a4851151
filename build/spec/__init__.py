"""The files that describe an image (golden.yaml, layers, cluster, releases), and the stage keys computed from them.

Imports from packages and core.
"""
