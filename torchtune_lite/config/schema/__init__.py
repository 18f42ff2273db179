"""A recipe's declarations: its keys, the types of their components, and hints at mistakes."""
