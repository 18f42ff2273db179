"""One run of a training recipe: its data, checkpoints, progress, records and validations."""
