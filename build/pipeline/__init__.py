"""One build: the plan, the host tools that it needs, and the stages in order.

Imports from report and below.
"""
