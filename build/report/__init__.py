"""Documents about an image: report, comparison, release notes, requirements.

Imports from artifact and below.
"""
