"""GGUF, the files of llama.cpp, Ollama and LM Studio: written from a checkpoint, and read back as one."""
