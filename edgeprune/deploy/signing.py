"""Signatures of manifests, by OpenSSH: `ssh-keygen -Y`.

In: a file, an SSH key. Out: `FILE.sig`, which `ssh-keygen -Y verify` checks on the target against a
public key that it knows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from edgeprune.errors import EdgePruneError, InputError

NAMESPACE = "edgeprune-bundle"  # a signature for something else is none for a bundle


def own_key() -> Path:
    """Return the key that signs when the user names none; it is made when it is missing.

    It lies in `$XDG_CONFIG_HOME/edgeprune`, else in `~/.config/edgeprune`.
    """
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    key = home / "edgeprune/signing_key"
    if not key.is_file():
        key.parent.mkdir(parents=True, exist_ok=True)
        _ssh_keygen("-q", "-t", "ed25519", "-N", "", "-C", "edgeprune", "-f", str(key))
    return key


def public_key(key: Path) -> str:
    """Return the public half of a key, `ssh-ed25519 AAAA...`.

    Raises:
        InputError: It is no SSH key, or is encrypted and its public half is not beside it.
    """
    beside = key.with_name(f"{key.name}.pub")
    text = (beside.read_text(encoding="utf-8") if beside.is_file()
            else _ssh_keygen("-y", "-P", "", "-f", str(key)))
    return " ".join(text.split()[:2])


def sign(file: Path, key: Path) -> Path:
    """Sign a file; return `FILE.sig`. A key of Ed25519 signs the same bytes alike every time.

    Raises:
        InputError: The key cannot be used.
    """
    signature = file.with_name(f"{file.name}.sig")
    signature.unlink(missing_ok=True)
    _ssh_keygen("-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(file))
    return signature


def _ssh_keygen(*arguments: str) -> str:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise EdgePruneError("ssh-keygen is missing, which signs bundles",
                             remedy="apt install openssh-client")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=60)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"the signing key cannot be used ({last})", got=arguments[-1],
                         remedy="name an SSH key with --key; one that is encrypted must be in the "
                         "agent")
    return done.stdout
