"""Samples to batches: plans, packing, streams, workers."""
