"""What validators and miners of the network agree on: messages, the challenge seed, time limits. Knows no transport and no model."""
