"""``python -m hatrack``."""

import sys

from hatrack.cli import main
from hatrack.support.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
