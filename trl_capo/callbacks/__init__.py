"""Opt-in callbacks: the pair log, checkpoints on SIGTERM, and training health."""
