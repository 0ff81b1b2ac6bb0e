"""Tests of bundles and deployments."""
