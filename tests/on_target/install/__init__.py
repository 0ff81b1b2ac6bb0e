"""Tests of what installs a bundle on a target."""
