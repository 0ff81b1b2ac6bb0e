"""Tests of edgeprune; the folders mirror the package."""
