"""The memory of a step, and ways to reduce it."""
