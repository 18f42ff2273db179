"""The embedded base model, its tokenizer and the demo's data, with the scripts that made them."""
