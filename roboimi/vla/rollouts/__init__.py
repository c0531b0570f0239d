"""Rollouts: a policy in its simulated task, episode by episode, on known seeds."""
