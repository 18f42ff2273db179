"""The state of a run in a checkpoint: progress, optimizer and random numbers, and the way back to it."""
