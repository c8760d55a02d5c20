"""``python -m tests.crash.campaign --kills 200 --seed 7``: rounds of kills, and a table."""

from __future__ import annotations

import sys

from tests.crash.campaign import main

sys.exit(main())
