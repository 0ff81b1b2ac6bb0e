"""`python -m edgeprune.cli`, as `accelerate launch -m` needs it."""

import sys

from edgeprune.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
