"""`python -m preftune`, which is what torchrun starts."""

import sys

from preftune.cli import main

if __name__ == "__main__":
    sys.exit(main())
