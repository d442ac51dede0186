"""One small case under a given mesh, as named NumPy arrays.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/parallel/eight_devices.py CHECKPOINT OUT.npz

runs it under (2, 2, 2); test_mesh.py runs it on one device and compares the two.
"""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np

from hir_jax import config as configs
from hir_jax.aot import hlo
from hir_jax.checks.verifier import Verifier
from hir_jax.data import dataset
from hir_jax.data.generate.tiny import lexicon
from hir_jax.engine import SELECT, Engine
from hir_jax.learner.update import gradients
from hir_jax.model import decoder
from hir_jax.model.config import ModelConfig
from hir_jax.model.files import hf
from hir_jax.parallel import mesh as meshes
from hir_jax.rollouts import Clock, roll_out
from hir_jax.run.samples import rollout_metrics
from hir_jax.step import policy_batch, select_replays
from hir_jax.types import Rollout, TrainBatch, Verdicts

STEPS = 2


def write_checkpoint(directory: Path) -> None:
    """A random Qwen3 model over the lexicon tokenizer: grouped queries, untied; every split axis is even."""
    tokenizer = lexicon.build_tokenizer()
    model = ModelConfig("qwen3", len(tokenizer), 32, 64, 2, 4, 2, 8, tie_embeddings=False, qk_norm=True)
    params = jax.jit(decoder.init, static_argnums=0)(model, jax.random.key(11))
    params = jax.tree.map(
        lambda x: np.asarray(x) * (3 if x.ndim > 1 else 1), params
    )  # away from the uniform distribution
    hf.save(directory, model, params, tokenizer, (tokenizer.eos_token_id,))


def case_config(checkpoint: str, mesh: tuple[int, int, int]):
    """Four prompts of the tiny environment, three slots each, in float32."""
    c = configs.defaults()
    c.model.checkpoint = checkpoint
    c.data.source, c.data.size, c.data.eval_size = "witness", 12, 4
    c.data.templates = ("type1", "type4")
    c.data.min_constraints, c.data.max_constraints = 3, 4
    c.data.batch_prompts, c.data.max_prompt = 4, 128
    c.rollout.m, c.rollout.max_response, c.replay.k, c.replay.fill = 2, 10, 1, "mask"
    c.constraints.workers = 0
    c.learner.learning_rate, c.learner.kl, c.learner.micro_batch_tokens = 1e-3, 0.05, 4 * 138
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = mesh
    c.rollout.tensor = (
        2 if mesh == (2, 2, 2) else 0
    )  # the sampler's own layout: parameters over pairs, rows over the four
    configs.check(c)
    return c


def fixed_batch(config, vocabulary: int) -> TrainBatch:
    """Twelve rows of random tokens in the shapes of a whole step: three for each of four prompts, one with weight 0."""
    rng = np.random.default_rng(5)
    rows, prompt, response = configs.sequences(config), config.data.max_prompt, config.rollout.max_response
    mask = np.arange(response) < rng.integers(1, response + 1, rows)[:, None]
    return TrainBatch(
        tokens=rng.integers(5, vocabulary, (rows, prompt + response)).astype(np.int32),
        prompt_length=rng.integers(1, 20, rows).astype(np.int32),
        response_mask=mask,
        behaviour_logp=((-5.5 + 0.3 * rng.normal(size=mask.shape)) * mask).astype(np.float32),
        importance=np.ones(mask.shape, np.float32),
        ref_logp=((-5.6 + 0.3 * rng.normal(size=mask.shape)) * mask).astype(np.float32),
        reward=rng.integers(0, 2, rows).astype(np.float32),
        weight=np.where(np.arange(rows) == 4, 0, 1).astype(np.float32),
        group=np.arange(rows, dtype=np.int32) // 3,
        is_replay=np.arange(rows) % 3 == 2,
    )


def named(prefix: str, tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))[0]
    return {prefix + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def comparable(metrics) -> dict:
    """Metrics that do not depend on the layout. Bins do, because they are divided among the devices."""
    return {name: value for name, value in metrics.items() if name not in ("padding", "shared")}


def fixed_tokens(engine: Engine, state) -> dict[str, np.ndarray]:
    """Gradients, metrics and parameters after one update on the fixed batch."""
    batch = fixed_batch(engine.config, engine.model.vocab_size)
    advantage = np.random.default_rng(6).normal(size=batch.behaviour_logp.shape).astype(np.float32)
    compute = jax.jit(
        partial(
            gradients, model=engine.model, settings=engine.settings.learner, shard=engine.settings.shard,
            multiple=meshes.row_devices(engine.mesh),
        )
    )  # fmt: skip
    with jax.set_mesh(engine.mesh):
        grads, sums = compute(state.params, *meshes.put_rows(engine.mesh, (batch, advantage)))
    found = named("gradients", grads) | named("gradient_metrics", comparable(sums))
    state, metrics = engine.update(state, batch)
    return found | named("fixed_metrics", comparable(metrics)) | named("fixed_params", state.params)


def batch_of(engine: Engine, state, reference, prompts, rollout, verdicts, rounds: int, step: int):
    """The TrainBatch that `learn` updates on, which it does not return."""

    def make(params, reference, prompts, rollout, verdicts):
        key = engine.key(SELECT, step)
        replays = select_replays(rollout, verdicts, step, rounds, key, settings=engine.settings)
        return policy_batch(params, reference, prompts, rollout, verdicts, replays, settings=engine.settings)[0]

    arrays = meshes.put_rows(engine.mesh, (prompts, rollout, verdicts))
    with jax.set_mesh(engine.mesh):
        return engine.fetch(jax.jit(make)(state.params, reference, *arrays))


def whole_steps(engine: Engine, config, state, reference) -> dict[str, np.ndarray]:
    """STEPS training steps from prompts to parameters, composed as in train.py."""
    data = dataset.load(config, engine.backbone.frame, engine.backbone.stop_ids[0])
    found = {}
    with Verifier(0, config.constraints.timeout_seconds) as verifier:
        for step in range(STEPS):
            rows = [data.rows[i] for i in data.indices(step)]
            prompts = engine.prompts(rows, data.shapes)
            rollout, verdicts, rounds = roll_out(engine, verifier, state.params, rows, prompts, step, Clock())
            batch = batch_of(engine, state, reference, prompts, rollout, verdicts, rounds, step)
            given = prompts, rollout, verdicts, rounds, step
            state, learned, replays = engine.learn(state, reference, *given)
            seen = rollout_metrics(engine, rollout, verdicts, replays, rounds)
            found |= named(f"step{step}/batch", batch) | named(f"step{step}/verdicts", verdicts)
            found |= named(f"step{step}/rollout", rollout) | named(f"step{step}/replays", replays)
            found |= named(f"step{step}/metrics", comparable(seen | learned))
    return found | named("whole_params", state.params)


def buffered_steps(checkpoint: str, mesh: tuple[int, int, int], devices) -> dict[str, np.ndarray]:
    """Updates with a buffer of five rows, a number that the devices do not divide, on fixed samples and verdicts."""
    config = case_config(checkpoint, mesh)
    config.method, config.buffer.rows = "ilr", 5
    configs.check(config)
    engine, rng = Engine(config, devices), np.random.default_rng(7)
    data = dataset.load(config, engine.backbone.frame, engine.backbone.stop_ids[0])
    params, found = engine.load_params(), {}
    state = engine.init_state(params)
    filled = np.arange(configs.sequences(config)) % 3 < 2
    for step in range(STEPS):
        prompts = engine.prompts([data.rows[i] for i in data.indices(step)], data.shapes)
        mask = (np.arange(10) < rng.integers(1, 11, filled.shape)[:, None]) & filled[:, None]
        tokens = rng.integers(5, engine.model.vocab_size, mask.shape).astype(np.int32)
        logp = ((-5.5 + 0.3 * rng.normal(size=mask.shape)) * mask).astype(np.float32)
        rollout = Rollout(tokens, mask, logp, 0 * logp, ended=filled, filled=filled)
        known = np.ones((len(filled), prompts.parts.present.shape[1]), bool)
        verdicts = Verdicts((rng.random(known.shape) < 0.8), known, known)
        state, metrics, _ = engine.learn(state, params, prompts, rollout, verdicts, 0, step)
        found |= named(f"buffered{step}/buffer", state.buffer) | named(f"buffered{step}/metrics", comparable(metrics))
    pieces = json.dumps(layout(state.buffer))
    return found | named("buffered_params", state.params) | {"buffer_layout": np.array(pieces)}


def layout(tree) -> dict[str, list]:
    """Path -> [shape of one device's piece, whole shape]."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p): [x.addressable_shards[0].data.shape, x.shape] for p, x in leaves}


def for_sampling(checkpoint: str) -> dict[str, np.ndarray]:
    """Parameters moved from fsdp shards on eight devices to a sampler's layout of 4 x 2: the result, and the data sent."""
    config = case_config(checkpoint, (1, 8, 1))
    config.rollout.tensor = 2
    engine = Engine(config)
    params = engine.load_params()
    compiled = engine.jitted["reshard"].lower(params).compile()
    sent = [[c.kind, c.result.sizes] for c in hlo.collectives(compiled.as_text(), 8)]
    found = compiled(params)
    layouts = {"given": layout(params), "found": layout(found), "sent": sent}
    return named("given", params) | named("for_sampling", found) | {"resharding": np.array(json.dumps(layouts))}


def run(checkpoint: str, mesh: tuple[int, int, int], devices) -> dict[str, np.ndarray]:
    """Everything that is compared; `layouts` holds JSON."""
    config = case_config(checkpoint, mesh)
    engine = Engine(config, devices)
    params = engine.load_params()
    state = engine.init_state(params)
    layouts = {"loaded": layout(params), "state": layout(state)}
    found = fixed_tokens(engine, state)
    found |= whole_steps(engine, config, engine.init_state(params), params)
    found |= buffered_steps(checkpoint, mesh, devices)
    return found | {"layouts": np.array(json.dumps(layouts))}


if __name__ == "__main__":
    np.savez(sys.argv[2], **run(sys.argv[1], (2, 2, 2), jax.devices()), **for_sampling(sys.argv[1]))
