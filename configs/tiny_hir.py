"""The tiny environment."""

from hir_jax.config import defaults


def get_config(variant: str = "hir"):
    c = defaults()
    c.data.source = "witness"
    c.data.templates = ("type1", "type4")
    c.data.eval_size = 256
    c.data.eval_batch = 128
    c.rollout.max_response = 40
    c.model.hidden_size = 128
    c.model.intermediate_size = 256
    c.model.num_layers = 2
    c.model.num_heads = 4
    c.learner.micro_batch_tokens = 1 << 16
    c.learner.mini_batches = 1
    c.data.max_prompt = 72
    if variant == "sft":
        c.method = "sft"
        c.data.prompt_buckets = (32,)
        c.data.size = 16_000
        c.data.min_constraints, c.data.max_constraints = 1, 2
        c.data.batch_prompts = 64
        c.learner.learning_rate = 3e-3
        c.learner.schedule = "cosine"
        c.learner.warmup_steps = 20
        c.total_steps = 500
        c.eval_every = 0
    else:
        c.data.size = 4000
        c.data.min_constraints, c.data.max_constraints = 5, 6
        c.data.batch_prompts = 16
        c.learner.learning_rate = 1e-3
        c.learner.kl = 0.0
        c.total_steps = 150
        c.eval_every = 25
    return c
