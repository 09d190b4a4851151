"""The stage ``verify``: clones are booted, their inventory is collected, and the image tests run.

Imports from machines and below.
"""
