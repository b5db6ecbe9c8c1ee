"""Lists model files (registry), reads their GGUF headers (gguf), fetches and keeps them (fetch, sources, store).

It knows neither the machine nor llama.cpp: which file fits a machine is decided in placement/.
"""
