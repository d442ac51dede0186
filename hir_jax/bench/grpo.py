"""The grpo phase: whole steps on the same prompts, lengths and number of trained sequences: our `ilr`, our `hir`, a peer's.

Ours run the host functions of train.py, the IFEval checks of the config's instructions included. No token ends a response, so
that each has new_tokens tokens. One optimiser update a step.
"""

from __future__ import annotations

import copy
import dataclasses
import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np

from hir_jax import train
from hir_jax.bench import peer_trl
from hir_jax.bench.machine import against, rates, timed
from hir_jax.bench.session import Session, Work
from hir_jax.bench.sizes import NO_STOP, Sizes
from hir_jax.data import prepared
from hir_jax.rollouts import Clock, sample_and_verify
from hir_jax.types import InputError

METHODS = ("ilr", "hir")


def _config(config, method: str, sizes: Sizes):
    """The config with instructions of two or three constraints: prompts of about 80 tokens."""
    config = copy.deepcopy(config)
    config.method = method
    config.rollout.m, config.rollout.max_response = sizes.samples - config.replay.k, sizes.new_tokens
    if config.rollout.m < 1:
        raise InputError(f"--samples={sizes.samples} must be larger than config.replay.k = {config.replay.k}")
    config.rollout.dynamic_rounds = 0  # the steps have no other prompts
    d = config.data
    d.batch_prompts, d.size, d.eval_size = sizes.prompts, 40 * sizes.prompts, 1
    d.min_constraints, d.max_constraints = 2, 3
    d.max_prompt, d.prompt_buckets = sizes.grpo_prompt_tokens, ()
    config.learner.mini_batches = 1
    return config


class Step(Work):
    """`run()` makes one training step, always on the same prompts. Its tokens are those of the trained responses."""

    flops = 0

    def __init__(self, config, method: str, sizes: Sizes, directory: Path, stack: ExitStack):
        config = _config(config, method, sizes)
        self._run = run = train.Run(config, directory / method, stack)
        run.observe = lambda *_: None  # the steps leave no files
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a training run would catch it, go on and save its state
        self.engine = engine = run.engine
        engine.settings = dataclasses.replace(engine.settings, stop_ids=NO_STOP)
        self.rows = run.data.rows[: sizes.prompts]
        if len(self.rows) < sizes.prompts:
            raise InputError(
                f"only {len(self.rows)} of {config.data.size} instructions fit in --grpo_prompt_tokens="
                f"{sizes.grpo_prompt_tokens}, and --prompts is {sizes.prompts}: give more tokens"
            )
        order = prepared.epochs(range(sizes.prompts), config.seed).batch(sizes.prompts)
        run.data = dataclasses.replace(run.data, rows=self.rows, order=order)
        self.params = engine.load_params()
        self._state, self._step = engine.init_state(self.params), 0
        self._reference = self.params if config.learner.kl > 0 else None
        self.tokens, self.metrics, self.seconds = sizes.rows * sizes.new_tokens, {}, {}

    def warm_up(self) -> None:
        """Makes a step, and draws one further sample a prompt, which a later step may be the first to ask for."""
        self.run()
        engine, run = self.engine, self._run
        if not (engine.settings.replays and engine.config.replay.fill == "resample"):
            return
        indices = run.data.indices(self._step)
        rows = [run.data.rows[i] for i in indices]
        prompts, one_each = engine.prompts(rows, run.data.shapes), np.arange(len(rows))[:, None]
        conditions = jax.tree.map(lambda x: x[indices], run.conditions)
        params = engine.for_sampling(engine.policy(self._state.params))
        sample_and_verify(engine, run.verifier, params, rows, prompts, one_each, self._step, Clock(), conditions)

    def run(self) -> None:
        clock, given = Clock(), (self._state, self._reference, self._step)
        self._state, self.metrics, drawn, _ = train.policy_step(self._run, *given, clock)
        self._step, self.seconds = self._step + 1, clock.seconds
        if drawn != self.metrics["generated"] * self.engine.config.rollout.max_response:
            raise RuntimeError(f"a step drew {drawn} tokens with {self.metrics['generated']} samples: some ended early")

    def described(self) -> dict:
        """Counts of sampled and trained sequences; of the last step the seconds by phase, and the update's padding and share of
        columns that rows of one prompt share."""
        return {
            "sampled_sequences": self.metrics["samples"], "replays": self.metrics["replays"],
            "trained_sequences": self.tokens // self.engine.config.rollout.max_response,
            "padding": self.metrics["padding"], "shared": self.metrics["shared"],
            "phases": {name.removeprefix("seconds/"): value for name, value in self.seconds.items()},
        }  # fmt: skip


def bench(session: Session) -> dict:
    """Seconds a step, and ratios against the faster of the peer's variants; each round is ours, then the peer's.
    `compile_seconds_after_warm_up` should be 0: the rounds' seconds include what is compiled in them."""
    sizes = session.sizes
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        steps = {method: Step(session.config, method, sizes, Path(name), stack) for method in METHODS}
        session.compile_seconds()
        for step in steps.values():
            step.warm_up()
        compiled = session.compile_seconds()

        def one_round() -> dict[str, float]:
            return {method: timed(step.run) for method, step in steps.items()}

        if session.peer == "trl":
            found = _compared(steps, peer_trl.measure(steps[METHODS[0]], session, one_round))
        else:
            laps = session.rounds("grpo", one_round)
            found = {m: rates([lap[m] for lap in laps], s.tokens) | s.described() for m, s in steps.items()}
        lengths = [len(row.tokens) for row in steps[METHODS[0]].rows]
    return found | {
        "prompts": sizes.prompts, "samples": sizes.samples, "new_tokens": sizes.new_tokens, "stops": "off",
        "prompt_tokens": sum(lengths) / len(lengths), "prompt_columns": sizes.grpo_prompt_tokens,
        "compile_seconds": compiled, "compile_seconds_after_warm_up": session.compile_seconds(),
    }  # fmt: skip


def _compared(steps: dict[str, Step], variants: dict[str, dict]) -> dict:
    """Our figures beside the peer's fastest variant, and all of its variants. variants: as `peer_trl.measure` gives them."""
    described = {}
    for name, variant in variants.items():
        laps = variant.pop("laps")
        described[name] = variant | rates([lap["peer"] for lap in laps], steps[METHODS[0]].tokens)
        for method, step in steps.items():
            pairs = [(lap[method], lap["peer"]) for lap in laps]
            described[name][method] = rates([a for a, _ in pairs], step.tokens) | against(pairs, step.tokens)
    fastest = min(described, key=lambda name: described[name]["seconds"]["median"])
    found = {method: described[fastest][method] | step.described() for method, step in steps.items()}
    return found | {"peer_fastest": fastest, "peer_variants": described}
