"""Tests of edgeprune.export."""
