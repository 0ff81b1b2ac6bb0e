"""Tests of edgeprune.model."""
