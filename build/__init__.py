"""Goldsmith: one command from a spec to a verified, immutable golden Debian image.

The line is ``spec -> rootfs -> media -> disk -> verify -> artifact``. Data only flows right: every stage is a
function from the stage before it to the next frozen value, and its cache key is the hash of its declared inputs.
"""

__version__ = "0.1.0"
