r"""Decoding and learning at the shapes of Qwen3 on one accelerator, against that chip's limits. Random bfloat16 weights.

    python -m experiments.benchmarks.gpu --output=FILE [--cases=NAME,...] [--wheels=DIR] [--rounds=5] [--tiny]

Uses the sampler, the learner and the Engine without any tokenizer or data: of this project's requirements it needs jax, flax,
optax, ml_collections, einops, jaxtyping and tokamax. If one is missing, --wheels=DIR installs those packages into a temporary
directory that it lacks and that DIR has wheels of (`carrying.fetch_wheels` gets all).

A decode case has `sequences` rows, 8 samples a prompt, no stop tokens. The seconds of a decode step are those of new_tokens
tokens minus those of one, divided by the steps between. Its floor is the larger of FLOPs / matmul rate and (weights + filled
cache, a prompt's once for all its samples) / memory rate, with both rates measured in the same run. A learner case's MFU is 6ND +
attention FLOPs, remat not counted, over its seconds and the bfloat16 matmul rate. A step case is a whole HiR step through the
functions that training compiles (sampling, reference log-probs, selection and relabelling by made-up verdicts, update). Its
parameters, moments and reference are bfloat16: in float32 they alone, with gradients, would take 80.4 GB. By the compiler's
account the step takes at most 55.3 of 80 GB, while sampling (update: 54.6):

    python -m hir_jax.aot --config=configs/qwen3_4b_hir.py --topology=h100:1 --config.model.param_dtype=bfloat16 \
        --config.data.batch_prompts=16 --config.data.max_prompt=512 --config.data.prompt_buckets='()' \
        --config.rollout.max_response=1024 --config.rollout.tensor=0 --config.rollout.cache_bytes=0 \
        --config.learner.pack_columns=0 --config.learner.micro_batch_tokens=16384

That suits a measurement of memory and speed; training at a rate of 1e-6 needs float32, since rounding to bfloat16 would undo most
changes of a weight. The JSON file is written after each case, so that a run that is cut off keeps its finished cases; a case that
does not fit the memory is reported as such. --tiny: small shapes, to try the script on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from experiments import carrying

NEEDED = ("jax", "flax", "optax", "ml_collections", "einops", "jaxtyping", "tokamax")
PROMPT_SAMPLES = 8


@dataclass(frozen=True)
class Decode:
    model: str
    sequences: int
    prompt: int  # tokens
    new_tokens: int
    slots: int = 0  # of continuous batching; 0: the plain loop


@dataclass(frozen=True)
class Learn:
    model: str
    sequences: int
    prompt: int  # tokens
    response: int
    micro_batch_tokens: int
    remat: str


@dataclass(frozen=True)
class Step:
    model: str
    prompts: int
    prompt: int  # tokens
    response: int
    micro_batch_tokens: int


# hidden, MLP, layers, heads, key heads, head size, words; all with tied embeddings and normalised queries and keys
SHAPES = {
    "qwen3-4b": (2560, 9728, 36, 32, 8, 128, 151_936),
    "qwen3-1.7b": (2048, 6144, 28, 16, 8, 128, 151_936),
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, 128, 151_936),
    "tiny": (64, 128, 2, 4, 2, 16, 512),
}
CASES = {
    "step-4b": Step("qwen3-4b", 16, 512, 1024, 16_384),
    "decode-4b-256": Decode("qwen3-4b", 256, 256, 256),
    "decode-4b-64": Decode("qwen3-4b", 64, 256, 256),
    "decode-4b-256-long": Decode("qwen3-4b", 256, 1024, 256),
    "decode-4b-256-slots": Decode("qwen3-4b", 256, 256, 256, slots=256),
    "decode-0.6b-256": Decode("qwen3-0.6b", 256, 256, 256),
    "learn-4b-full": Learn("qwen3-4b", 64, 256, 768, 16_384, "full"),
    "learn-4b-full-8k": Learn("qwen3-4b", 64, 256, 768, 8_192, "full"),
    "learn-4b-dots": Learn("qwen3-4b", 64, 256, 768, 4_096, "dots"),
    "learn-1.7b-full": Learn("qwen3-1.7b", 64, 256, 768, 16_384, "full"),
    "learn-0.6b-full": Learn("qwen3-0.6b", 64, 256, 768, 16_384, "full"),
}
TINY = {
    "step": Step("tiny", 2, 32, 8, 64),
    "decode": Decode("tiny", 16, 8, 8),
    "decode-slots": Decode("tiny", 16, 8, 8, slots=8),
    "learn": Learn("tiny", 8, 8, 8, 64, "full"),
}


def install(wheels: str | None) -> None:
    """Installs what is missing from wheels if a package of NEEDED is. Exits with a message without a directory of wheels."""
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not lacking:
        return
    if wheels is None:
        sys.exit(f"error: this Python lacks {', '.join(lacking)}: install them, or give --wheels=DIR with their wheels")
    site = Path(tempfile.mkdtemp(prefix="wheels-")) / "site"
    carrying.install(Path(wheels), site)
    sys.path.append(str(site))  # at the end, so that the machine's own packages stay in use
    if lacking := [name for name in lacking if importlib.util.find_spec(name) is None]:
        sys.exit(f"error: {wheels}: holds no wheel of {', '.join(lacking)}")


def make_model(name: str, remat: str = "full"):
    import jax

    from hir_jax.engine import ATTENTION
    from hir_jax.model.config import ModelConfig

    hidden, mlp, layers, heads, kv_heads, head, words = SHAPES[name]
    return ModelConfig(
        "qwen3", words, hidden, mlp, layers, heads, kv_heads, head, rope_theta=1e6, rms_norm_eps=1e-6, qk_norm=True,
        compute_dtype="bfloat16", remat=remat, attention=ATTENTION.get(jax.default_backend(), "plain"),
    )  # fmt: skip


def make_params(model):
    import jax

    from hir_jax.model import decoder

    return jax.jit(partial(decoder.init, model, param_dtype=jax.numpy.bfloat16))(jax.random.key(0))


def measure_seconds(run: Callable[[], object], rounds: int) -> tuple[float, dict[str, float]]:
    """(seconds of the first call, which compiles; median and spread of the others)."""
    from hir_jax.bench.machine import spread, timed

    return timed(run), spread([timed(run) for _ in range(rounds)])


def decode(case: Decode, rounds: int, ceilings) -> dict:
    import jax
    import numpy as np

    from hir_jax.bench.sizes import NO_STOP, random_prompts
    from hir_jax.model import counting
    from hir_jax.sampler.continuous import sample_continuous
    from hir_jax.sampler.sample import Sampling, sample

    model = make_model(case.model)
    params = make_params(model)
    count = case.sequences // PROMPT_SAMPLES
    lengths = np.full(count, case.prompt, np.int32)
    prompts = random_prompts(model.vocab_size, lengths, case.prompt)
    rows = np.arange(case.sequences, dtype=np.int32).reshape(count, PROMPT_SAMPLES)
    arrays = jax.device_put((prompts, lengths, rows, jax.random.key(1)))

    def drawing(new_tokens: int):
        settings = Sampling(new_tokens, NO_STOP, 0)
        if case.slots:
            call = jax.jit(partial(sample_continuous, model=model, settings=settings, slots=case.slots))
        else:
            call = jax.jit(partial(sample, model=model, settings=settings))
        return lambda: jax.block_until_ready(call(params, *arrays))

    first, one = measure_seconds(drawing(1), rounds)
    compiling, whole = measure_seconds(drawing(case.new_tokens), rounds)
    steps = case.new_tokens - 1
    step = (whole["median"] - one["median"]) / steps
    rates = ceilings.flops_per_s["bfloat16"], ceilings.bytes_per_s
    parts = [
        counting.decode_floor_seconds(model, lengths, PROMPT_SAMPLES, t, *rates) for t in range(1, case.new_tokens)
    ]
    floor = sum(map(max, parts)) / steps
    return {
        "first_call_seconds": first + compiling, "seconds": whole, "seconds_of_one_token": one, "step_seconds": step,
        "tokens_per_s": case.sequences * case.new_tokens / whole["median"],
        "decode_tokens_per_s": case.sequences / step, "step_floor_seconds": floor, "fraction_of_floor": floor / step,
        "floor_parts": {"computing": sum(p[0] for p in parts) / steps, "reading": sum(p[1] for p in parts) / steps},
        "weight_bytes": counting.weight_bytes(model),
    }  # fmt: skip


def learn(case: Learn, rounds: int, ceilings) -> dict:
    import jax
    import numpy as np

    from hir_jax.bench.sizes import random_prompts, train_batch
    from hir_jax.config import defaults
    from hir_jax.learner.settings import LearnerSettings
    from hir_jax.learner.update import init_state, update
    from hir_jax.model import counting

    model, rows = make_model(case.model, case.remat), case.sequences
    changes = {"mini_batches": 1, "micro_batch_tokens": case.micro_batch_tokens}
    settings = dataclasses.replace(LearnerSettings.of(defaults()), **changes)
    state = jax.jit(partial(init_state, settings=settings), donate_argnums=0)(make_params(model))
    lengths, columns = np.full(rows, case.prompt, np.int32), case.prompt + case.response
    tokens = random_prompts(model.vocab_size, np.full(rows, columns), columns)
    batch = jax.device_put(train_batch(tokens, lengths, np.ones((rows, case.response), bool), model.vocab_size))
    step = jax.jit(partial(update, model=model, settings=settings), donate_argnums=0)

    def run():
        nonlocal state
        state, metrics = jax.block_until_ready(step(state, batch))
        return metrics

    first, seconds = measure_seconds(run, rounds)
    flops = counting.learner_flops(model, lengths, case.response)
    return {
        "first_call_seconds": first, "seconds": seconds, "tokens_per_s": rows * columns / seconds["median"],
        "flops": flops, "mfu": flops / seconds["median"] / ceilings.flops_per_s["bfloat16"],
        "metrics": {name: float(value) for name, value in run().items()},
    }  # fmt: skip


CONSTRAINTS = 4  # of an instruction in a step case; they share half of the prompt's tokens


def _made_up(case: Step, samples: int, words: int):
    """(PromptBatch, Verdicts of all slots, each constraint met in six of ten)."""
    import numpy as np

    from hir_jax.bench.sizes import random_prompts
    from hir_jax.types import PromptBatch, PromptParts, Verdicts

    n, c, size = case.prompts, CONSTRAINTS, case.prompt // 2 // CONSTRAINTS
    rng = np.random.default_rng(0)
    lengths = np.full(n, case.prompt, np.int32)
    prompts = random_prompts(words, lengths, case.prompt)
    tokens = rng.integers(0, words, (n, c, 2 * c, size)).astype(np.int32)
    head = case.prompt - c * size - 1
    parts = PromptParts(
        prompts, np.full(n, head, np.int32), tokens, np.full(tokens.shape[:-1], size, np.int32), prompts[:, -1:],
        np.ones(n, np.int32), np.full(n, 2, np.int32), np.ones((n, c), bool),
    )  # fmt: skip
    present = np.ones((n * samples, c), bool)
    return PromptBatch(prompts, lengths, parts), Verdicts(rng.random(present.shape) < 0.6, present, present)


def hir_step(case: Step, rounds: int, ceilings) -> dict:
    import jax
    import numpy as np

    from hir_jax import config as configs
    from hir_jax.backbone import Backbone
    from hir_jax.bench.machine import spread
    from hir_jax.bench.sizes import NO_STOP
    from hir_jax.engine import Engine
    from hir_jax.model import counting
    from hir_jax.step import empty_slots, put_slots

    config = configs.defaults()
    config.method, config.model.compute_dtype, config.model.remat = "hir", "bfloat16", "full"
    config.model.param_dtype = "bfloat16"
    config.data.batch_prompts, config.data.max_prompt = case.prompts, case.prompt
    config.rollout.max_response, config.learner.micro_batch_tokens = case.response, case.micro_batch_tokens
    config.total_steps = rounds + 1
    engine = Engine(config, backbone=Backbone(make_model(case.model), NO_STOP, 0))
    settings, jitted, n, m = engine.settings, engine.jitted, case.prompts, engine.settings.first_samples
    reference = make_params(engine.model)
    state = engine.init_state(reference)
    prompts, verdicts = jax.device_put(_made_up(case, settings.samples, engine.model.vocab_size))
    rows = np.arange(n * m, dtype=np.int32).reshape(n, m)
    empty, _ = empty_slots(n * settings.samples, case.response, 1, 0)
    all_slots = jax.jit(lambda rollout: put_slots(empty, rollout, n, 0))

    def run(step: int):
        nonlocal state
        seconds, key = {}, engine.key(0, step)

        def timed(name, call, *arguments, **options):
            start = time.perf_counter()
            found = jax.block_until_ready(call(*arguments, **options))
            seconds[name] = time.perf_counter() - start
            return found

        with jax.set_mesh(engine.mesh):
            given = state.params, prompts.tokens, prompts.length, rows, key
            sampled = timed("sample", jitted["sample"], *given, sampling=settings.rollout_sampling)
            rollout = all_slots(sampled)
            given = prompts, rollout, verdicts, np.int32(0), key
            state, metrics, replays = timed("learn", jitted["learn"], state, None, reference, *given)
        lengths, source = np.asarray(sampled.mask).sum(-1), np.asarray(replays.row)[np.asarray(replays.valid)]
        replayed = np.asarray(rollout.mask)[source].sum(-1)
        return seconds, (int(lengths.sum()), np.concatenate([lengths, replayed]), len(source)), metrics

    first = sum(run(0)[0].values())
    seconds, seen, metrics = zip(*(run(step) for step in range(1, rounds + 1)), strict=True)
    phases = {name: spread([each[name] for each in seconds]) for name in seconds[0]}
    sampled, responses, replays = seen[-1]
    prompt_lengths = np.full(len(responses), case.prompt)  # rewritten ones are shorter: a little more than is computed
    passes = 4 / 3  # the update, and the reference policy's forward pass
    flops = passes * counting.learner_flops(engine.model, prompt_lengths, responses)
    update = phases["learn"]["median"]
    return {
        "first_call_seconds": first, "seconds": spread([sum(each.values()) for each in seconds]), "phases": phases,
        "rollout_tokens_per_s": sampled / phases["sample"]["median"],
        "learner_tokens_per_s": float((prompt_lengths + responses).sum()) / update, "replays": replays,
        "trained_rows": len(responses), "flops": flops, "mfu": flops / update / ceilings.flops_per_s["bfloat16"],
        "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "metrics": {name: float(value) for name, value in metrics[-1].items()},
    }  # fmt: skip


RUNS = {Decode: decode, Learn: learn, Step: hir_step}


def attempt(case, rounds: int, ceilings) -> dict:
    """A case's figures, or {"out_of_memory": the message} where it does not fit."""
    import jax

    try:
        return RUNS[type(case)](case, rounds, ceilings)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"out_of_memory": str(error).splitlines()[0][:300]}
    finally:
        jax.clear_caches()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--cases", help=f"which, separated by commas: {', '.join(CASES)}")
    parser.add_argument("--wheels", metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    cases = TINY if args.tiny else CASES
    names = args.cases.split(",") if args.cases else list(cases)
    if unknown := [name for name in names if name not in cases]:
        sys.exit(f"error: --cases: unknown {', '.join(unknown)}; known are {', '.join(cases)}")
    install(args.wheels)
    from hir_jax.bench import machine
    from hir_jax.run.files import write_atomically

    ceilings = machine.ceilings(("bfloat16", "float32"))
    found = machine.description() | {
        "matmul_flops_per_s": ceilings.flops_per_s, "read_bytes_per_s": ceilings.bytes_per_s, "rounds": args.rounds,
    }  # fmt: skip
    found["cases"], failed = {}, []
    for name in names:
        print(f"{name} ...", flush=True)
        try:
            figures = attempt(cases[name], args.rounds, ceilings)
        except Exception:  # the device's time is dear: measure the other cases, and name the failed ones at the end
            traceback.print_exc()
            failed.append(name)
            continue
        found["cases"][name] = vars(cases[name]) | figures
        write_atomically(args.output, json.dumps(found, indent=1) + "\n")
        print(json.dumps({k: v for k, v in figures.items() if not isinstance(v, dict)}), flush=True)
    if failed:
        sys.exit(f"error: these cases failed (see above): {', '.join(failed)}")


if __name__ == "__main__":
    main()
