"""storyfi-lite: the lean StoryFi miner, and the validator's proof of what a miner ran.

Importing this package loads neither llama.cpp nor bittensor nor any API client.
"""

from __future__ import annotations

import os

# For llama.cpp's threads, read when its library is loaded: they wait for each other a moment at full speed, then let other programs
# run. By default that moment is 300 times as long, and beside a busy program most of the time goes there (docs/performance.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
PROTOCOL_VERSION = "3.3.0"  # 3.2.0 plus the optional fields of protocol/messages.py
