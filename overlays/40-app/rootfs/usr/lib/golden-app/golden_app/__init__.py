"""Additions of this machine to a Django project: adapted settings, the client's address, a response for the health check.

It is in the search path of every process of the application (PYTHONPATH in its units). It needs Python and Django only.
"""
