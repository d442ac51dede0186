"""What bench.py compares with: transformers' generate and a torch training step, of the same weights on the same tokens."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hir_jax.engine import Engine
from hir_jax.models import hf
from hir_jax.types import InputError

if TYPE_CHECKING:
    from hir_jax import bench


def require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise InputError("--peer=hf needs torch, which nothing else does: pip install torch, or leave --peer out")


def _load_peer(engine: Engine, params):
    """The same weights in transformers, in the compute dtype."""
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model"
        hf.save(path, engine.model, params, None, engine.stop_ids)
        return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, engine.model.compute_dtype))


class Rollout:
    """transformers' generate: draws from the full vocabulary at temperature 1, as many tokens for the same prompts."""

    def __init__(self, engine: Engine, params, ours: bench.Rollout):
        import torch

        self.torch, self.model = torch, _load_peer(engine, params).eval()
        columns = ours.tokens.shape[1]
        self.mask = torch.tensor((np.arange(columns) >= columns - ours.lengths[:, None]).astype(np.int64))
        self.tokens = torch.tensor(ours.tokens.astype(np.int64))
        self.samples, self.new_tokens = ours.rows.shape[1], engine.config.rollout.max_response

    def run(self) -> None:
        with self.torch.inference_mode():
            found = self.model.generate(
                self.tokens, attention_mask=self.mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                num_return_sequences=self.samples, max_new_tokens=self.new_tokens, min_new_tokens=self.new_tokens,
                eos_token_id=None, pad_token_id=0, use_cache=True,
            )  # fmt: skip
        if found.shape != (self.tokens.shape[0] * self.samples, self.tokens.shape[1] + self.new_tokens):
            raise RuntimeError(f"generate gave a {tuple(found.shape)} array")


class Learner:
    """The same update in torch: log-probs of the response columns alone, PPO's ratio, clipping of the norm, AdamW."""

    def __init__(self, engine: Engine, params, ours: bench.Learner):
        import torch

        self.torch, self.model, batch = torch, _load_peer(engine, params).train(), ours.batch
        self.tokens = torch.tensor(batch.tokens.astype(np.int64))
        self.prompt_columns = batch.tokens.shape[1] - batch.response_mask.shape[1]
        start = self.prompt_columns - batch.prompt_length[:, None]
        self.mask = torch.tensor((np.arange(batch.tokens.shape[1]) >= start).astype(np.int64))
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.old = torch.tensor(batch.behaviour_logp)
        advantage = batch.reward - batch.reward.mean()
        self.advantage = torch.tensor((advantage / max(advantage.std(), 1e-6))[:, None])
        settings = engine.settings
        self.max_norm = settings.max_grad_norm
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
        )  # fmt: skip

    def run(self) -> None:
        torch, first = self.torch, self.prompt_columns - 1  # the column that predicts the first response token
        logits = self.model(
            self.tokens[:, :-1], attention_mask=self.mask[:, :-1], position_ids=self.positions[:, :-1],
            use_cache=False, logits_to_keep=slice(first, None),
        ).logits.float()  # fmt: skip
        target = self.tokens[:, first + 1 :, None]
        logp = logits.gather(-1, target)[..., 0] - logits.logsumexp(-1)
        loss = -((logp - self.old).exp() * self.advantage).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        float(loss.detach())
