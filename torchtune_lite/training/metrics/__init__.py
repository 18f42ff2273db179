"""What a run reports: its metrics, where they are logged, and what is drawn of them."""
