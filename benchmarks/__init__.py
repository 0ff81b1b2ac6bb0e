"""Scripts that print the figures of the documents, with machine and date."""
