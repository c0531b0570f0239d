"""Training: optimiser, averaged weights, checkpoints, metrics, the step loop."""
