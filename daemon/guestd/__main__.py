"""`guestd`: exit status 0, 1 failure, 2 usage, 78 configuration (systemd does not restart that)."""

from __future__ import annotations

import sys

from guestd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
