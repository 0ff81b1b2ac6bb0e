"""What any shape costs on a target, from a few measured shapes."""
