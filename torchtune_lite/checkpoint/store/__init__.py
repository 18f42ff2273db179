"""The folders of a run's checkpoints: who may write, how one is published whole, found again and verified."""
