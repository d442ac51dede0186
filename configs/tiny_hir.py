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

# What two narrow layers can learn: copying any word asked for (keywords:existence) is not among it.
CONSTRAINT_IDS = (
    "keywords:forbidden_words",
    "length_constraints:number_sentences",
    "length_constraints:number_paragraphs",
    "detectable_format:number_bullet_lists",
    "detectable_format:number_highlighted_sections",
    "detectable_format:title",
    "detectable_content:number_placeholders",
    "detectable_content:postscript",
    "startend:quotation",
    "startend:end_checker",
    "change_case:capital_word_frequency",
    "punctuation:no_comma",
)
DEMO_IDS = (
    "keywords:forbidden_words",
    "keywords:frequency",
    "length_constraints:number_words",
    "length_constraints:number_paragraphs",
    "detectable_format:number_bullet_lists",
    "detectable_format:number_highlighted_sections",
    "detectable_content:number_placeholders",
    "detectable_format:title",
    "detectable_content:postscript",
    "startend:quotation",
    "punctuation:no_comma",
)
CONSTRAINTS = {"easy": 2, "medium": 4, "hard": 6}
RECIPES = ("fractional",)
STAGES = ("sft", *CONSTRAINTS, "demo_sft", "demo")


def parse(variants: str) -> tuple[str, bool]:
    """(the one of STAGES that is named, whether the recipe is the fractional one) of names separated by commas."""
    names, this = variants.split(","), f"configs/tiny_hir.py:{variants}"
    if unknown := [name for name in names if name not in STAGES + RECIPES]:
        raise InputError(f"{this}: no such variant {unknown[0]!r}; known: {', '.join(STAGES + RECIPES)}")
    stage, *more = [name for name in names if name in STAGES] or ["medium"]
    fractional = "fractional" in names
    if more or (fractional and stage not in CONSTRAINTS):
        raise InputError(
            f"{this}: these do not go together; give one of {', '.join(STAGES)}; fractional with a difficulty"
        )
    return stage, fractional


def get_config(variants: str = "medium"):
    variant, fractional = parse(variants)
    c = defaults()
    c.data.source = "witness"
    c.data.constraint_ids = CONSTRAINT_IDS
    c.data.templates = ("type1", "type4")
    c.data.max_prompt = 64
    c.data.eval_size = 256
    c.data.eval_batch = 128
    c.rollout.max_response = 40
    c.constraints.workers = 0
    c.model.hidden_size = 64
    c.model.intermediate_size = 128
    c.model.num_layers = 2
    c.model.num_heads = 2
    c.model.remat = "none"
    c.learner.micro_batch_tokens = 2080
    c.learner.mini_batches = 1
    if variant in ("sft", "demo_sft"):
        c.method = "sft"
        c.data.size = 8000
        c.data.min_constraints, c.data.max_constraints = 1, 6
        c.data.label_noise = 0.9
        c.data.batch_prompts = 64
        c.learner.learning_rate = 4e-3
        c.learner.schedule = "cosine"
        c.learner.warmup_steps = 20
        c.total_steps = 450
        c.eval_every = 0
        c.checkpoint_every = 150
    else:
        c.data.size = 2000
        c.data.min_constraints = c.data.max_constraints = CONSTRAINTS.get(variant, 4)
        c.data.batch_prompts = 16
        c.replay.fill = "mask"
        c.learner.learning_rate = 3.3e-5
        if fractional:
            c.method, c.learner.learning_rate, c.learner.kl = "hir_clr", 3e-4, 0.03
        c.total_steps = 100
        c.eval_every = 20
        c.checkpoint_every = 50
    if variant.startswith("demo"):
        c.data.constraint_ids = DEMO_IDS
        c.data.max_prompt = 72
        c.model.hidden_size = 128
        c.model.intermediate_size = 256
        c.model.num_heads = 4
        c.learner.micro_batch_tokens = 4096
    if variant == "demo_sft":
        c.data.prompt_buckets = (32,)
        c.data.max_constraints = 2
        c.data.label_noise = 0.0
    if variant == "demo":
        c.data.min_constraints = 3
        c.constraints.on_device = True
        c.learner.learning_rate = 3e-4
        c.learner.kl = 0.01
        c.total_steps = 60
        c.eval_every = 15
        c.checkpoint_every = 15
    return c
