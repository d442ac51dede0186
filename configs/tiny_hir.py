"""The tiny environment: reinforcement learning from nothing in minutes, on text that the ordinary IFEval checks judge.

    python -m hir_jax.train --config=configs/tiny_hir.py:sft --workdir=runs/tiny_sft
    python -m hir_jax.train --config=configs/tiny_hir.py --workdir=runs/tiny_hir --config.model.checkpoint=runs/tiny_sft/model

A transformer of 0.1 M parameters over a lexicon of 262 words and marks. The first command fits it to instructions with one
to six constraints, each drawn from a hidden witness response so that it can be met, nine tenths of them then exchanged for
others (so the fit knows how a title or a list looks, and hardly when one is asked for); the second trains it by HiR.

Difficulty is the number of constraints: `:easy` 2, `:medium` 4 (the same as no variant), `:hard` 6; about 13%, 2% and 0.4% of
the samples of the fitted model meet all of them (experiments/PROTOCOL.md).

The recipe is the paper's, HiR with a KL of 0.001, at the rate that is best here with that, 3.3e-5. `:fractional`, alone or with a
difficulty (`:hard,fractional`), is the one that was chosen on tuning seeds and compared with it on others: replay added to the
fractional reward, a KL of 0.03, 3e-4 (experiments/results/tiny/recipe). It is better with four and six constraints; with two the
interval of its gain holds 0, so the paper's stays the default.

Time on 2 cores: 80 s for the first, 30 s for the second.
Expect: ILA on held-out instructions, greedy, about where it began (4% before, 5% after; mean of five seeds) with the paper's
recipe, 15% with `:fractional`, and 23% with `--config.method=clr` at the rate and KL of experiments/tuned.json.
Differs from the released run in learning rate, batch, one update a step, and replay.fill.

`:demo_sft` and `:demo` are what `make demo` runs: 0.36 M parameters, fitted without exchanged constraints to one or two of
DEMO_IDS and trained on three or four, which the device decides, so that a step is one compiled function. About 150 s and
100 s; ILA from about 17% to 25% in 60 steps (256 rows, give or take 3).
"""

from hir_jax.config import defaults
from hir_jax.types import InputError

# Constraints of an instruction in reinforcement learning.
CONSTRAINTS = {"easy": 4, "medium": 5, "hard": 6}
BASE_ILA = {"easy": 0.15, "medium": 0.03, "hard": 0.005}
STAGES = ("sft", *CONSTRAINTS, "demo_sft", "demo")


def get_config(variant: str = "medium"):
    if variant not in STAGES:
        raise InputError(f"configs/tiny_hir.py:{variant}: no such variant {variant!r}; known: {', '.join(STAGES)}")
    c = defaults()
    c.data.source = "witness"
    c.data.templates = ("type1", "type4")
    c.data.max_prompt = 64
    c.data.eval_size = 256
    c.data.eval_batch = 128
    c.rollout.max_response = 48
    c.constraints.workers = 0
    c.model.hidden_size = 96
    c.model.intermediate_size = 256
    c.model.num_layers = 3
    c.model.num_heads = 4
    c.model.remat = "none"
    c.learner.micro_batch_tokens = 4096
    c.learner.mini_batches = 1
    if variant in ("sft", "demo_sft"):
        c.method = "sft"
        c.data.size = 16000
        c.data.min_constraints, c.data.max_constraints = 1, 6
        c.data.batch_prompts = 64
        c.learner.learning_rate = 4e-3
        c.learner.schedule = "cosine"
        c.learner.warmup_steps = 50
        c.total_steps = 1000
        c.eval_every = 0
        c.checkpoint_every = 250
    else:
        c.data.size = 4000
        c.data.min_constraints = c.data.max_constraints = CONSTRAINTS.get(variant, 4)
        c.data.batch_prompts = 16
        c.replay.fill = "mask"
        c.constraints.on_device = True
        c.learner.learning_rate = 3e-4
        c.total_steps = 100
        c.eval_every = 20
        c.checkpoint_every = 50
    return c
