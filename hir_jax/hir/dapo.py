"""Two parts of DAPO (Yu et al. 2025, arXiv 2503.14476): dynamic sampling and the soft overlong punishment.

The others are config keys of the learner: `clip_high`, `average = "token"`, and `mask_truncated` (overlong filtering). Pure
functions of arrays. N prompts (groups) of S samples each, B = N * S rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, Float32, Int, Int64

from hir_jax.types import Array


def differing(reward: Float[Array, " B"], weight: Float[Array, " B"], samples: int) -> Bool[np.ndarray, " N"]:
    """The groups that dynamic sampling keeps (section 3.2, eq. 11): those with two usable samples, of weight above 0, whose
    rewards differ. In the others every advantage within the group is 0. With binary rewards that is 0 < accuracy < 1."""
    reward, usable = (rearrange(np.asarray(x), "(n s) -> n s", s=samples) for x in (reward, np.asarray(weight) > 0))
    return np.where(usable, reward, -np.inf).max(-1) > np.where(usable, reward, np.inf).min(-1)


def replacements(
    kept: Bool[np.ndarray, " N"], fresh: Bool[np.ndarray, " N"]
) -> tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, " K"]]:
    """(places, sources): the i-th place whose group does not differ goes to the i-th fresh group that does, for as many as there
    are of both. kept, fresh: `differing` of the groups so far and of those of a further round."""
    places, sources = np.flatnonzero(~kept), np.flatnonzero(fresh)
    count = min(len(places), len(sources))
    return places[:count], sources[:count]


def with_groups(kept, fresh, places: Int64[np.ndarray, " K"], sources: Int64[np.ndarray, " K"]):
    """`kept` with the groups `sources` of `fresh` in `places`; trees of NumPy arrays, [N, ...] or [B, ...], the first [N]."""
    prompts = len(jax.tree.leaves(kept)[0])

    def one(a, b):
        a, b = (rearrange(x, "(n s) ... -> n s ...", n=prompts) for x in (a, b))
        a = a.copy()
        a[places] = b[sources]
        return rearrange(a, "n s ... -> (n s) ...")

    return jax.tree.map(one, kept, fresh)


def overlong_penalty(length: Int[Array, " B"], longest: int, tokens: int) -> Float32[Array, " B"]:
    """R_length of responses of `length` tokens, the end token included (section 3.4, eq. 13): 0 up to longest - tokens, from
    there falling linearly to -1 at `longest`. In the paper longest is L_max and tokens L_cache, which is above 0."""
    over = jnp.asarray(length, jnp.float32) - (longest - tokens)
    return -jnp.clip(over / tokens, 0.0, 1.0)
