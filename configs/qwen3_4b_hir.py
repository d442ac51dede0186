"""tbd"""

from hir_jax.config import defaults


def get_config():
    c = defaults()
    c.model.checkpoint = "Qwen/Qwen3-4B-Instruct-2507"
    c.model.compute_dtype = "bfloat16"
    c.model.remat = "full"
    c.data.source = "hir16k"
    c.data.path = "sastpg/HIR-16K"
    c.learner.pack_columns = 6144
    c.learner.micro_batch_tokens = 6144
    c.rollout.cache_bytes = 6_000_000_000
    c.mesh.data, c.mesh.fsdp = 1, -1
    c.rollout.tensor = 8
    return c
