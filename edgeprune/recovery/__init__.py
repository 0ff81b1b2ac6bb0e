"""Training after pruning: what was lost comes back."""
