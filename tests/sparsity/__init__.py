"""Tests of edgeprune.sparsity."""
