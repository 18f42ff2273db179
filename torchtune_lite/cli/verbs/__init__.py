"""The verbs of `tune`, a file each, with `configure(parser)` and `main(args)`."""
