"""Trained tokens: new rows of the embedding, and virtual ones before each sequence."""
