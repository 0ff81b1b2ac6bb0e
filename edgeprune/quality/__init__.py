"""How good the deployed artifact is."""
