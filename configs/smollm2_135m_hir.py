"""SmolLM2-135M"""

from hir_jax.config import defaults


def get_config():
    c = defaults()
    c.model.checkpoint = "smollm2-135m-gguf"
    c.data.batch_prompts = 8
    c.data.size = 1000
    c.data.max_prompt = 512
    c.data.prompt_buckets = (256,)
    c.rollout.max_response = 256
    c.learner.micro_batch_tokens = 2048
    c.learner.learning_rate = 1e-6
    c.eval_every = 0
    c.total_steps = 10
    return c
