"""Opens what the user wants (options.py): a model on this machine or an API. Every command opens its models here.

loader    who writes: a local model, an API, or one behind the other
local     a model file on this machine: placement -> file -> loader or prover
api       the API loaders
"""
