"""An artifact becomes a template on a cluster: upload, template, verification on the node.

Imports from release and below.
"""
