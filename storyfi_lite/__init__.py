"""storyfi-lite: the lean StoryFi miner, and the validator's proof of what a miner ran.

Importing this package loads neither llama.cpp nor bittensor nor any API client.
"""

from __future__ import annotations

__version__ = "0.1.0"
PROTOCOL_VERSION = "3.3.0"  # 3.2.0 plus the optional fields of protocol/messages.py
