"""What a config may name: dotted paths, what they offer, and whom to trust."""
