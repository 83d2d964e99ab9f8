"""``python -m trd_engine``."""

import sys

from trd_engine.cli import main

sys.exit(main())
