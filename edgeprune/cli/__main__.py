"""`python -m edgeprune.cli`, as `accelerate launch -m` needs it."""

import sys

from edgeprune.cli.app import main

sys.exit(main())
