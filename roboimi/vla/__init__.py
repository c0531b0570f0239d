"""The policy: data, encoder, agent, head, training and rollouts."""
