"""Answers over HTTP, in the form of OpenAI's API: for trying a model out on one machine."""

from torchtune_lite.serving.server import listen, serve

__all__ = ["listen", "serve"]
