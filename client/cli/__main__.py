"""``python -m client.cli``: the same as ``trd``."""

import sys

from client.cli.entry import main

sys.exit(main())
