"""From what the user wants to a loader that answers: options, placement, file, model or API. The only way to open one.

options   what the user wants, validated once
loader    the decision: a local model, an API, or one behind the other
api       the API loaders
"""
