"""Zeros in the weights instead of smaller matrices: unstructured sparsity and N:M patterns."""
