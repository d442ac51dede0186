"""The learner phase: one optimiser update (gradients, clipping, AdamW) of prompts x samples sequences, on two batches.

"even": all prompts have one length and all responses another, so neither side has padding. "packed": log-normal lengths cut at
new_tokens, as real samples end early; we drop the padding, the peer computes it. "products": the layers' matrix products of a
micro-batch and of its gradients, and nothing else, which tells what the matrix library of each side makes of the model's shapes.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hir_jax.bench import peer_hf
from hir_jax.bench.machine import Ceilings
from hir_jax.bench.rollout import bench_engine
from hir_jax.bench.session import Session, Work
from hir_jax.bench.sizes import PROMPT_LONGEST, PROMPT_TOKENS, learner_lengths, random_prompts, train_batch
from hir_jax.engine import Engine
from hir_jax.model import counting
from hir_jax.model.config import MATRICES


class Learner(Work):
    """Training steps on one fixed batch: `run()` makes one update. Its tokens are those of prompts and responses.

    prompts, responses: lengths, i32[B]; columns: the prompts are padded to so many.
    """

    def __init__(self, engine: Engine, params, prompts: np.ndarray, responses: np.ndarray, columns: int):
        self.engine, vocab = engine, engine.model.vocab_size
        mask = np.arange(int(responses.max())) < responses[:, None]
        answers = np.random.default_rng(1).integers(0, vocab, mask.shape).astype(np.int32) * mask
        tokens = np.concatenate([random_prompts(vocab, prompts, columns), answers], axis=1)
        self.batch = train_batch(tokens, prompts, mask, vocab)
        self.state, self.metrics = engine.init_state(params), {}
        self.tokens = int(prompts.sum() + responses.sum())
        self.flops = counting.learner_flops(engine.model, prompts, responses)
        self.micro_rows = max(1, engine.settings.learner.micro_batch_tokens // tokens.shape[1])

    def run(self) -> None:
        self.state, self.metrics = self.engine.update(self.state, self.batch)


class Products(Work):
    """The products of `rows` tokens with every matrix of every layer, and the two of their gradients, in the dtype that the model
    computes in."""

    def __init__(self, engine: Engine, params, rows: int):
        dtype, layers = engine.model.compute_dtype, range(engine.model.num_layers)
        self.layers = [{name: jnp.asarray(params["layers"][name][i], dtype) for name in MATRICES} for i in layers]
        self.inputs = {name: jnp.ones((rows, len(matrix)), dtype) for name, matrix in self.layers[0].items()}
        self.tokens = rows
        self.flops = 6 * rows * sum(matrix.size for layer in self.layers for matrix in layer.values())

    def run(self) -> None:
        for layer in self.layers:
            jax.block_until_ready(products(self.inputs, layer))


@jax.jit
def products(inputs: dict[str, jax.Array], matrices: dict[str, jax.Array]) -> dict[str, tuple[jax.Array, ...]]:
    """Of each x [rows, in] and matrix [in, out]: y = x @ matrix, and with y in the place of its gradient those of x and of the
    matrix."""
    outputs = {name: inputs[name] @ matrix for name, matrix in matrices.items()}
    return {name: (y, y @ matrices[name].T, inputs[name].T @ y) for name, y in outputs.items()}


def _one(session: Session, name: str, ours: Learner, params) -> dict:
    peer = peer_hf.Learner(ours.engine, params, ours) if session.peer == "hf" else None
    found = session.measure(f"learner, {name}", ours, peer)
    session.trace(ours, f"learner_{name}")
    rows, columns = ours.batch.tokens.shape
    found |= {"rows": rows, "columns": columns, "padding_given": 1.0 - ours.tokens / ours.batch.tokens.size}
    if "padding" in ours.metrics:
        found["padding_computed"] = ours.metrics["padding"]
    if peer:
        found["peer_micro_batch_rows"] = ours.micro_rows
    return found | {"response_tokens": float(ours.batch.response_mask.sum(-1).mean())}


def bench(session: Session) -> dict:
    sizes, engine = session.sizes, bench_engine(session.config, session.sizes.new_tokens)
    params, settings = engine.load_params(), engine.settings.learner
    found = {"loss": settings.loss, "micro_batch_tokens": settings.micro_batch_tokens, "remat": engine.model.remat}
    even = np.full(sizes.rows, PROMPT_TOKENS, np.int32), np.full(sizes.rows, sizes.new_tokens, np.int32)
    packed = learner_lengths(sizes.rows, sizes.new_tokens)
    for name, lengths, columns in (("even", even, PROMPT_TOKENS), ("packed", packed, PROMPT_LONGEST)):
        found[name] = _one(session, name, Learner(engine, params, *lengths, columns), params)
    ours = Products(engine, params, settings.micro_batch_tokens)
    peer = peer_hf.Products(ours, engine.model.compute_dtype) if session.peer == "hf" else None
    found["products"] = session.measure("learner, products of the layers", ours, peer) | {"rows": ours.tokens}
    session.fractions["learner"] = partial(fractions, found, engine.model.compute_dtype)
    return found


def fractions(found: dict, dtype: str, ceilings: Ceilings) -> dict:
    """All parts with their FLOPs as a fraction of the peak of the matrix products in the compute dtype."""
    parts = {name: found[name] for name in ("even", "packed", "products")}
    peak = ceilings.flops_per_s[dtype]
    return {name: part | {"fraction_of_matmul": part["flops_per_s"] / peak} for name, part in parts.items()}
