"""Tests of `edgeprune.on_target`."""
