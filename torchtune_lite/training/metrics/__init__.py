"""The reports of a run: its metrics, their loggers, and the loss curve."""
