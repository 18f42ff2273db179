"""What a recipe declares: its keys, the types of their components, and hints at slips."""
