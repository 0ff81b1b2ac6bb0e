"""Tests of what serves artifacts."""
