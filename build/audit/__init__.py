"""Runs security auditors against an image and compares their results with the ledger.

Imports from pipeline and below.
"""
