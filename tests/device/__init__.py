"""Tests of edgeprune.device."""
