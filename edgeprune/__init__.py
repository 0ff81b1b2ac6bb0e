"""edgeprune fits a Llama-family model to an ARM machine and proves it by measuring there.

The public surface is the command line (`edgeprune --help`) and the functions named here. Importing
this package loads neither torch nor transformers.
"""

from edgeprune.errors import EdgePruneError
from edgeprune.records import __version__

__all__ = ["EdgePruneError", "__version__"]
