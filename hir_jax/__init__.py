"""Hindsight instruction Replay in JAX: reinforcement learning that replays failed responses under easier instructions."""
