"""What a Llama is: its shape, its tensors, its files."""
