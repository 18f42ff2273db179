"""The adapters of a projection: low-rank updates, and factors of its inputs or outputs."""
