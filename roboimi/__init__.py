"""Robot-learning campaigns: a frozen vision encoder, a one-step action head, and comparisons that can be believed."""

__version__ = "0.1.0"
