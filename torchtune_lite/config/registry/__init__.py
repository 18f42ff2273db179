"""The objects that a config may name: dotted paths, offered names, and trusted code."""
