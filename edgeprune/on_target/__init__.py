"""What runs on targets, with their Python's standard library: nothing here imports edgeprune."""
