"""Tests of `edgeprune.run`."""
