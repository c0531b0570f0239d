"""The campaign on this machine: in subprocesses, or in the images by a Docker engine."""
