"""Hindsight instruction Replay in JAX: reinforcement learning that replays failed responses as successes of easier requests."""

import os

# transformers is here for its tokenizers; that torch is not installed is no news.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
