"""Where datasets, feature caches, checkpoints and run folders live, and by which keys."""
