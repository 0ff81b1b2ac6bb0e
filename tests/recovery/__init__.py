"""Tests of edgeprune.recovery."""
