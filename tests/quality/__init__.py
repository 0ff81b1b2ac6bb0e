"""Tests of edgeprune.quality."""
