"""The command line: one module for each command; `app` puts them together."""

from edgeprune.cli.app import main

__all__ = ["main"]
