"""`python -m irnext`: the same as the command `irnext`."""

import sys

from .cli import main

sys.exit(main())
