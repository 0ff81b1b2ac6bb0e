"""From an artifact to a service on the target: bundle, install, gate, switch, roll-back."""
