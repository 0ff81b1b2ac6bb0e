"""The reference ARM machine: a Debian 12 arm64 system emulated by qemu."""
