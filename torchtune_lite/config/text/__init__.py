"""A config as text: YAML documents, `key=value` words, references between keys."""
