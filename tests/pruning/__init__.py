"""Tests of edgeprune.pruning."""
