"""Tests on a Debian of this computer's own architecture: real systemd and sshd at native speed."""
