"""Tests of edgeprune.report."""
