"""How long a test waits for what happens at once on an idle host: a limit for what hangs, never a measurement.

Two emulated guests leave a test beside them a tenth of a processor: a Python that starts in 0.1 s elsewhere takes
10 s there. So a test that waits, joins or bounds a duration takes this limit;
tests/unit/suite/test_patience.py looks for shorter ones.
"""

from __future__ import annotations

PATIENCE_SECONDS = 120.0
