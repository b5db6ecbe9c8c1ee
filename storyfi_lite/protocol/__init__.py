"""Defines what validators and miners agree on: messages, the challenge seed, time limits. It knows no transport and no model."""
