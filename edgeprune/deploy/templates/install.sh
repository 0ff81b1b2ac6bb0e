#!/bin/sh
# Installs $name $version beside what is served, tries it, and puts it in its place when it holds
# what it promises. Needs root, systemd, python $python or the same minor version, and no network.
#     ./install.sh "PUBLIC KEY OF WHOEVER SIGNED IT" [--listen ADDRESS:PORT]
# The key is remembered; later bundles need not name it: ./install.sh
set -eu
here=$$(cd "$$(dirname "$$0")" && pwd)
case "$${1:-}" in
ssh-*|ecdsa-*|sk-*) signer=$$1; shift; set -- --signer "$$signer" "$$@" ;;
esac
PYTHONPATH="$$here/installer" exec python3 -m edgeprune.on_target.install.installer deploy --bundle "$$here" "$$@"
