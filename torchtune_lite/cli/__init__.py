"""The command `tune`, and what its verbs share."""
