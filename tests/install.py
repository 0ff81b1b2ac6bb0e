"""Install the Debian packages that the tests' machines need; without root say which.

python -m tests.install
"""

import sys

from tests import sshd
from tests.arm import image
from tests.debian import container
from tests.host import MachineError, install_packages, missing_packages


def main() -> int:
    """Install what is missing; return the exit status."""
    missing = {*image.missing(), *missing_packages(container.HOST_PACKAGES),
               *missing_packages(sshd.HOST_PACKAGES)}
    try:
        install_packages(sorted(missing))
    except MachineError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
