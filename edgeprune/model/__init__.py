"""What a model is: its family, its shape, its tensors, its files."""
