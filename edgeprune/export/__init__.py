"""A checkpoint becomes an artifact that a target runs."""
