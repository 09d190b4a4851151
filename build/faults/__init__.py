"""Injects faults into disposable virtual machines and counts failed requests.

Imports from pipeline and below.
"""
