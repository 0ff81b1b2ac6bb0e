"""Tests of `edgeprune.cli`."""
