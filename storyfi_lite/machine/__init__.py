"""Knows the machine at hand: its GPUs, memory, cores and disk, and whether the llama.cpp build on it works."""
