"""The command `tune`: one file per verb, each with `configure(parser)` and `main(args)`."""
