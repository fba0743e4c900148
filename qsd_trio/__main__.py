"""Run the daemon: ``python -m qsd_trio``."""

from __future__ import annotations

import sys

from qsd_trio.cli import main

if __name__ == "__main__":
    sys.exit(main())
