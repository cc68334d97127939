"""Output for a terminal, as rich renderables."""
