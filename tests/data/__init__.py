"""Tests of edgeprune.target."""
