"""Tests of edgeprune.profiling."""
