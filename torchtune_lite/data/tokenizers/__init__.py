"""Tokenizers and chat templates, of torchtune's classes and of model folders."""
