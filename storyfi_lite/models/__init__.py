"""Model files: the registry that lists them, the GGUF header that describes one, the store that fetches and keeps them.

Knows neither the machine nor llama.cpp: which file fits a machine is decided in placement/.
"""
