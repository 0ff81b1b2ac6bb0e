"""What installs a bundle; it runs on the target as root, with the standard library alone."""
