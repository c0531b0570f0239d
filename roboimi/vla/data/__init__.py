"""Datasets of demonstrations: contract, manifest, episodes, windows, statistics, feature cache, validation."""
