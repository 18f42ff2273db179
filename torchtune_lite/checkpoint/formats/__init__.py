"""The files of weights, one format each: safetensors, PyTorch's, Hugging Face's, Meta's, PEFT's."""
