"""``python -m build``: the same entry point that the nox sessions call."""

import sys

from build.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
