"""Tests of edgeprune.planning."""
