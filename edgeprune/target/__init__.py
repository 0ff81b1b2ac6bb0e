"""The target: how it is described, reached, probed, given a runtime and made to measure."""
