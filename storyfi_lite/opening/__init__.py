"""From what the user wants (options.py) to something that runs it. The only way to open a model, for every command.

loader    who writes: a local model, an API, or one behind the other
local     a model file on this machine: placement -> file -> loader or prover
api       the API loaders
"""
