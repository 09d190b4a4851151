"""Goldsmith: one command from a spec to a verified, immutable golden Debian image.

The pipeline is ``base -> rootfs -> media -> disk -> verify -> artifact``. Data flows in one direction: every stage is a
function that takes the result of the previous stage and returns an immutable value. Its cache key is the hash of its
declared inputs.
"""

__version__ = "0.1.0"
