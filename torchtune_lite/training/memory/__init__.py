"""What a step takes, and the ways to take less."""
