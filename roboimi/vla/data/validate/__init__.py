"""Checks of a dataset before anything is trained on it: one function a check, found by its code."""
