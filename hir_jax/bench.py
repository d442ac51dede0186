"""Measures sampling and learning of a config's model on this machine, beside its own matmul peak and, if wanted, a peer.

    python -m hir_jax.bench --config=configs/smollm2_135m_hir.py [--peer=hf] [--output=FILE] [--phase=rollout,learner]
        [--rounds=3] [--prompts=8] [--samples=4] [--new_tokens=128] [--learner_rows=8] [--learner_columns=256]
        [--verify_rows=512]

Phases, each through the functions that train.py calls:
    rollout   prompts x samples responses of exactly new_tokens tokens (stops are off, so that all rows run to the end)
    learner   one optimiser update (gradients, clipping, AdamW) of learner_rows x learner_columns tokens
    step      two whole steps of the config by hir_jax.train in a temporary directory; the second one is reported, with
              its seconds per phase and the largest memory of the process. Minutes with a real model: only when named.
    verify    checks of verify_rows responses of about 300 tokens with 6 constraints each, in this process and by the
              config's number of workers, and on the device (see bench_verify); needs no model: only when named.

--peer=hf loads the same weights in transformers, from a directory written by hir_jax.models.hf, and lets `generate` draw
as many tokens for the same prompts and torch make the same update (log-probs of the same columns, clipping, AdamW), at the
same dtype, in turn with ours: A, B, A, B. It needs torch. Prints a table; the last line on stdout is one JSON object.

FLOPs are counted analytically (`forward_flops`), on tokens without padding; what remat recomputes is not counted.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from hir_jax import bench_verify, peers
from hir_jax import config as configs
from hir_jax.engine import SAMPLE, Engine
from hir_jax.models.config import ModelConfig
from hir_jax.runs import files
from hir_jax.runs.progress import Compilations
from hir_jax.types import InputError, PromptBatch, TrainBatch

PHASES = ("rollout", "learner", "step", "verify")
PROMPT_COLUMNS = 96  # prompts are PROMPT_SHORTEST to PROMPT_COLUMNS tokens, 80 in the mean, padded on the left
PROMPT_SHORTEST = 64
MATMUL_SIZE = 2048
NO_STOP = (-1,)  # an id that no token has


@dataclass(frozen=True)
class Sizes:
    """What is measured: rollout of prompts * samples rows, learner of rows x columns, verify of rows; `rounds` times."""

    prompts: int
    samples: int
    new_tokens: int
    learner_rows: int
    learner_columns: int
    verify_rows: int
    rounds: int


# ---- counting ----------------------------------------------------------------------------------------------------


def forward_flops(model: ModelConfig, tokens: int, unembedded: int, pairs: int) -> int:
    """FLOPs of the matrix products of a forward pass: 2 a weight and token, 4 a channel of each (query, key) pair.

    tokens: through the layers; unembedded: of these, how many are projected to the vocabulary; pairs: sum over tokens
    of the number of columns each attends to. Norms, soft-max, rotation and look-ups are not counted.
    """
    heads, kv_heads = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    layer = 2 * model.hidden_size * (heads + kv_heads) + 3 * model.hidden_size * model.intermediate_size
    weights = 2 * (model.num_layers * layer * tokens + model.hidden_size * model.vocab_size * unembedded)
    return weights + 4 * heads * model.num_layers * pairs


def _causal_pairs(first: int, last: int) -> int:
    """Sum of the context sizes of the first-th to the last-th token, each counting itself."""
    return (last * (last + 1) - first * (first - 1)) // 2


def rollout_flops(model: ModelConfig, lengths: Sequence[int], samples: int, new_tokens: int) -> int:
    """Prefill of each prompt once, then new_tokens - 1 passes a row (the last token drawn is never read)."""
    total = 0
    for length in map(int, lengths):
        total += forward_flops(model, length, 1, _causal_pairs(1, length))
        pairs = _causal_pairs(length + 1, length + new_tokens - 1)
        total += samples * forward_flops(model, new_tokens - 1, new_tokens - 1, pairs)
    return total


def learner_flops(model: ModelConfig, lengths: Sequence[int], responses: int) -> int:
    """Forward and backward (twice the forward) of prompts of these lengths with `responses` tokens behind each."""
    forward = 0
    for length in map(int, lengths):
        tokens = length + responses - 1
        forward += forward_flops(model, tokens, responses, _causal_pairs(1, tokens))
    return 3 * forward


def matmul_flops_per_second(dtype: str, repeats: int = 3) -> float:
    """The best of a few MATMUL_SIZE cubed products by XLA, as the programs would make them."""
    size = MATMUL_SIZE
    product = jax.jit(jnp.matmul)
    a = jnp.full((size, size), 0.5, dtype)
    product(a, a).block_until_ready()
    best = min(_timed(lambda: product(a, a).block_until_ready()) for _ in range(repeats))
    return 2 * size**3 / best


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, in GB (10^9 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


# ---- our side ----------------------------------------------------------------------------------------------------


def _prompts(vocab: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Random prompts, right-aligned in i32[rows, PROMPT_COLUMNS], and their lengths."""
    rng = np.random.default_rng(0)
    lengths = np.linspace(PROMPT_SHORTEST, PROMPT_COLUMNS, rows).astype(np.int32)
    tokens = rng.integers(0, vocab, (rows, PROMPT_COLUMNS)).astype(np.int32)
    return np.where(np.arange(PROMPT_COLUMNS) >= PROMPT_COLUMNS - lengths[:, None], tokens, 0), lengths


def _bench_engine(config, sizes: Sizes, new_tokens: int) -> Engine:
    """An Engine of the config whose responses have `new_tokens` tokens, with one optimiser update a step and no stops."""
    config = copy.deepcopy(config)
    config.rollout.max_response = new_tokens
    config.learner.mini_batches = 1
    engine = Engine(config)
    engine.stop_ids = NO_STOP
    return engine


class Rollout:
    """Sampling by the config's model: `run()` draws once, with fresh noise each time."""

    def __init__(self, engine: Engine, params, sizes: Sizes):
        self.engine, self.params = engine, params
        self.tokens, self.lengths = _prompts(engine.model.vocab_size, sizes.prompts)
        self.rows = np.arange(sizes.prompts * sizes.samples).reshape(sizes.prompts, sizes.samples)
        self.count = self.rows.size * engine.config.rollout.max_response
        self.flops = rollout_flops(engine.model, self.lengths, sizes.samples, engine.config.rollout.max_response)
        self._calls = 0

    def run(self) -> None:
        self._calls += 1
        engine, prompts = self.engine, PromptBatch(self.tokens, self.lengths, None)
        found = engine.sample(
            self.params, prompts, self.rows, engine.key(SAMPLE, self._calls), engine.sampling(temperature=1.0)
        )
        if int(found.mask.sum()) != self.count:
            raise RuntimeError(f"rollout drew {int(found.mask.sum())} tokens instead of {self.count}")


class Learner:
    """Training steps on one fixed batch: `run()` makes one update."""

    def __init__(self, engine: Engine, params, sizes: Sizes):
        self.engine, rows = engine, sizes.learner_rows
        responses = sizes.learner_columns - PROMPT_COLUMNS
        prompts, self.lengths = _prompts(engine.model.vocab_size, rows)
        rng = np.random.default_rng(1)
        answers = rng.integers(0, engine.model.vocab_size, (rows, responses)).astype(np.int32)
        logp = np.full((rows, responses), -np.log(engine.model.vocab_size), np.float32)
        self.batch = TrainBatch(
            tokens=np.concatenate([prompts, answers], axis=1), prompt_length=self.lengths,
            response_mask=np.ones((rows, responses), bool), behaviour_logp=logp, ref_logp=logp,
            reward=(np.arange(rows) % 2).astype(np.float32), weight=np.ones(rows, np.float32),
            group=np.arange(rows, dtype=np.int32), is_replay=np.zeros(rows, bool),
        )  # fmt: skip
        self.state = engine.init_state(params)
        self.count = int(self.lengths.sum()) + rows * responses
        self.flops = learner_flops(engine.model, self.lengths, responses)

    def run(self) -> None:
        self.state, _ = self.engine.update(self.state, self.batch)


# ---- measuring ---------------------------------------------------------------------------------------------------


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(ours, peer, rounds: int, compilations: Compilations) -> dict:
    """Warms both up, then runs them in turn. Seconds, tokens/s of the median, and the ratio peer / ours of each round."""
    compilations.take_seconds()
    first = _timed(ours.run)
    found = {"first_call_seconds": first, "compile_seconds": compilations.take_seconds(), "tokens": ours.count}
    found["flops"] = ours.flops
    if peer is not None:
        peer.run()
    pairs = [(_timed(ours.run), _timed(peer.run) if peer is not None else None) for _ in range(rounds)]
    found["compile_seconds_after_warm_up"] = compilations.take_seconds()
    found["seconds"] = _spread([a for a, _ in pairs])
    found["tokens_per_s"] = ours.count / found["seconds"]["median"]
    found["flops_per_s"] = ours.flops / found["seconds"]["median"]
    if peer is not None:
        found["peer_seconds"] = _spread([b for _, b in pairs])
        found["peer_tokens_per_s"] = ours.count / found["peer_seconds"]["median"]
        found["times_peer"] = _spread([b / a for a, b in pairs])
    return found


def bench_rollout(config, sizes: Sizes, peer: str | None, compilations: Compilations) -> dict:
    """Sampling, and apart from it what a single token costs: the prefill with one draw."""
    engine = _bench_engine(config, sizes, sizes.new_tokens)
    params = engine.load_params()
    ours = Rollout(engine, params, sizes)
    found = measure(ours, peers.Rollout(engine, params, ours) if peer else None, sizes.rounds, compilations)
    prefill = Rollout(_bench_engine(config, sizes, 1), params, sizes)
    prefill.run()
    found["prefill_seconds"] = min(_timed(prefill.run) for _ in range(sizes.rounds))
    decoding = found["seconds"]["median"] - found["prefill_seconds"]
    found["decode_step_seconds"] = decoding / max(1, sizes.new_tokens - 1)
    return found | {"rows": ours.rows.size, "new_tokens": sizes.new_tokens, "stop_ids": list(NO_STOP)}


def bench_learner(config, sizes: Sizes, peer: str | None, compilations: Compilations) -> dict:
    engine = _bench_engine(config, sizes, sizes.learner_columns - PROMPT_COLUMNS)
    params = engine.load_params()
    ours = Learner(engine, params, sizes)
    found = measure(ours, peers.Learner(engine, params, ours) if peer else None, sizes.rounds, compilations)
    return found | {"rows": sizes.learner_rows, "columns": sizes.learner_columns, "loss": engine.settings.loss}


def bench_host_checks(config, sizes: Sizes) -> dict:
    """Seconds of a batch in this process, which are core-seconds; those of its language checks; and by the pool."""
    checks = config.constraints
    found = bench_verify.measure(sizes.rounds, sizes.verify_rows, checks.workers, checks.timeout_seconds)
    laps = {name: _spread(values) for name, values in found.items() if name.endswith("seconds")}
    one, pool = laps["seconds"]["median"], laps["pool_seconds"]["median"]
    count = found["rows"] * found["constraints"]
    return found | laps | {
        "checks_per_s": count / one, "pool_checks_per_s": count / pool, "core_seconds": one,
        "pool_core_seconds": pool * found["workers"], "language_share": laps["language_seconds"]["median"] / one,
        "device_checks_per_s": found["device_checks"] / laps["device_seconds"]["median"],
        "device_host_checks_per_s": found["device_checks"] / laps["device_host_seconds"]["median"],
    }  # fmt: skip


def bench_step(config, compilations: Compilations) -> dict:
    """Two steps of the config as train.py makes them: the metrics of the second that tell time, and the memory."""
    from hir_jax import train  # the whole program, with its verifier and checkpoints: not needed by the other phases

    config = copy.deepcopy(config)
    config.total_steps, config.eval_every, config.checkpoint_every, config.save_model = 2, 0, 2, False
    with tempfile.TemporaryDirectory() as directory:
        compilations.take_seconds()
        train.train(config, Path(directory))
        lines = [json.loads(x) for x in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    second = lines[-1]
    phases = {name.removeprefix("seconds/"): value for name, value in second.items() if name.startswith("seconds/")}
    return {
        "seconds": phases, "sampled_tokens_per_s": second["tokens_per_s"], "sequences": configs.sequences(config),
        "compile_seconds": compilations.take_seconds(), "peak_memory_gb": peak_memory_gb(),
    }  # fmt: skip


def run_bench(config, phases: Sequence[str], sizes: Sizes, peer: str | None) -> dict:
    """All figures as one JSON-able dict; fractions are of the matmul peak measured before and after the phases."""
    if peer:
        peers.require_torch()
    compilations = Compilations()
    dtypes = tuple(dict.fromkeys(("float32", config.model.compute_dtype)))
    load = [os.getloadavg()[0]]
    peaks = [{d: matmul_flops_per_second(d) for d in dtypes}]
    found = {"dtype": config.model.compute_dtype, "peer": peer, "device": jax.devices()[0].device_kind}
    found |= {"devices": jax.device_count(), "cpus": os.cpu_count(), "jax": jax.__version__}
    if "step" in phases:  # first, while the process is small: its memory is what is asked for
        found["step"] = bench_step(config, compilations)
    if "rollout" in phases:
        found["rollout"] = bench_rollout(config, sizes, peer, compilations)
    if "learner" in phases:
        found["learner"] = bench_learner(config, sizes, peer, compilations)
    if "verify" in phases:
        found["verify"] = bench_host_checks(config, sizes)
    peaks.append({d: matmul_flops_per_second(d) for d in dtypes})
    best = {d: max(p[d] for p in peaks) for d in dtypes}
    found |= {"matmul_flops_per_s": best, "load_average": [*load, os.getloadavg()[0]]}
    for phase in ("rollout", "learner"):
        if phase in found:
            speed = found[phase]["flops_per_s"]
            found[phase]["fraction_of_matmul"] = {d: speed / (best[d] * jax.device_count()) for d in dtypes}
    return found | {"peak_memory_gb": peak_memory_gb()}


# ---- showing -----------------------------------------------------------------------------------------------------


def _range(values: dict[str, float], digits: int = 2) -> str:
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f} to {values['max']:.{digits}f})"


def show(found: dict, console: Console) -> None:
    """The figures as tables."""
    table = Table(title=f"{found['device']}, {found['cpus']} cores, jax {found['jax']}, {found['dtype']}")
    table.add_column("figure")
    names = [p for p in ("rollout", "learner") if p in found]
    for name in names:
        table.add_column(name, justify="right")
    parts = [found[name] for name in names]

    def row(title: str, value: Callable[[dict], str]) -> None:
        table.add_row(title, *(value(part) for part in parts))

    row(
        "shape",
        lambda p: (
            f"{p['rows']} x {p['new_tokens']} new, no stops" if "new_tokens" in p else f"{p['rows']} x {p['columns']}"
        ),
    )
    row("seconds, median (range)", lambda p: _range(p["seconds"]))
    row("tokens/s", lambda p: f"{p['tokens_per_s']:.0f}")
    row("GFLOP/s", lambda p: f"{p['flops_per_s'] / 1e9:.1f}")
    for dtype, peak in found["matmul_flops_per_s"].items():
        row(f"of {dtype} matmul, {peak / 1e9:.0f} GFLOP/s", lambda p, d=dtype: f"{p['fraction_of_matmul'][d]:.1%}")
    row("compile seconds", lambda p: f"{p['compile_seconds']:.1f}")
    row("prefill seconds", lambda p: f"{p['prefill_seconds']:.2f}" if "prefill_seconds" in p else "")
    row("ms a decode step", lambda p: f"{p['decode_step_seconds'] * 1e3:.1f}" if "decode_step_seconds" in p else "")
    if found["peer"]:
        row("peer: seconds", lambda p: _range(p["peer_seconds"]))
        row("peer: tokens/s", lambda p: f"{p['peer_tokens_per_s']:.0f}")
        row("times the peer's speed", lambda p: _range(p["times_peer"]))
    if names:
        console.print(table)
    if step := found.get("step"):
        laps = "  ".join(f"{name} {seconds:.1f}" for name, seconds in step["seconds"].items())
        console.print(
            f"a step of {step['sequences']} sequences, seconds: {laps}; memory up to {step['peak_memory_gb']:.2f} GB"
        )
    if checks := found.get("verify"):
        console.print(
            f"{checks['rows']} x {checks['constraints']} host checks of {checks['response_tokens']:.0f} tokens, seconds: "
            f"{_range(checks['seconds'])} on one core, {checks['language_share']:.0%} of it to identify languages; "
            f"{_range(checks['pool_seconds'])} with {checks['workers']} workers; "
            f"checks/s: {checks['checks_per_s']:.0f} and {checks['pool_checks_per_s']:.0f}; those that the device decides: "
            f"{checks['device_checks_per_s']:.0f} there, {checks['device_host_checks_per_s']:.0f} on one core"
        )
    before, after = found["load_average"]
    console.print(
        f"memory of the process up to {found['peak_memory_gb']:.2f} GB; load average {before:.1f}, then {after:.1f}"
    )


def _phases(named: Sequence[str]) -> list[str]:
    for name in named:
        if name not in PHASES:
            raise InputError(f"--phase={name}: unknown; known are {', '.join(PHASES)}, several separated by commas")
    return list(named)


def main(argv) -> None:
    del argv
    args = flags.FLAGS
    configs.check(args.config)
    sizes = Sizes(**{field.name: getattr(args, field.name) for field in fields(Sizes)})
    found = run_bench(args.config, _phases(args.phase), sizes, args.peer)
    show(found, Console(stderr=True))
    text = json.dumps(found)
    if args.output:
        files.write_atomically(Path(args.output), text + "\n")
    print(text)


if __name__ == "__main__":
    configs.define_flags("output")
    flags.DEFINE_enum("peer", None, ["hf"], "Measure transformers and torch too, in turn with ours.")
    flags.DEFINE_list("phase", ["rollout", "learner"], f"What to measure: {', '.join(PHASES)}.")
    flags.DEFINE_integer("rounds", 3, "Measurements of each; the median is reported.", lower_bound=1)
    flags.DEFINE_integer("prompts", 8, "Prompts of the rollout, of about 80 tokens.", lower_bound=1)
    flags.DEFINE_integer("samples", 4, "Responses to each prompt.", lower_bound=1)
    flags.DEFINE_integer("new_tokens", 128, "Tokens of each response.", lower_bound=2)
    flags.DEFINE_integer("learner_rows", 8, "Sequences of the update.", lower_bound=2)
    flags.DEFINE_integer(
        "learner_columns", 256, f"Their tokens, {PROMPT_COLUMNS} of them prompt.", lower_bound=PROMPT_COLUMNS + 1
    )
    flags.DEFINE_integer("verify_rows", bench_verify.ROWS, "Responses to verify.", lower_bound=1)
    flags.mark_flags_as_required(["config"])
    configs.run_program(main)
