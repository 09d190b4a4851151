"""What this machine adds to a Django project: settings that fit it, the client's address, an answer for the health check.

On the path of every process of the application (PYTHONPATH in its units). It needs Python and Django only.
"""
