"""transformers' generate and a training step in torch, of the same weights on the same tokens."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hir_jax.bench.session import Work
from hir_jax.engine import Engine
from hir_jax.model.files import hf

if TYPE_CHECKING:
    from hir_jax.bench import learner, rollout


def _load(engine: Engine, params, dtype: str):
    """(torch, the same weights in transformers, in the dtype that our side computes in)."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model"
        hf.save(path, engine.model, params, None, engine.backbone.stop_ids)
        return torch, AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))


class Rollout(Work):
    """transformers' generate: draws from the full vocabulary at temperature 1, as many tokens for the same prompts."""

    def __init__(self, engine: Engine, params, ours: rollout.Rollout):
        self.torch, model = _load(engine, params, engine.settings.sampler_model.compute_dtype)
        self.model, columns = model.eval(), ours.prompts.shape[1]
        self.mask = self.torch.tensor((np.arange(columns) >= columns - ours.lengths[:, None]).astype(np.int64))
        self.prompts = self.torch.tensor(ours.prompts.astype(np.int64))
        self.samples, self.new_tokens = ours.rows.shape[1], ours.new_tokens
        self.tokens, self.flops = ours.tokens, ours.flops

    def run(self) -> None:
        with self.torch.inference_mode():
            found = self.model.generate(
                self.prompts, attention_mask=self.mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                num_return_sequences=self.samples, max_new_tokens=self.new_tokens, min_new_tokens=self.new_tokens,
                eos_token_id=None, pad_token_id=0, use_cache=True,
            )  # fmt: skip
        if found.shape != (self.prompts.shape[0] * self.samples, self.prompts.shape[1] + self.new_tokens):
            raise RuntimeError(f"generate gave a {tuple(found.shape)} array")


class Learner(Work):
    """The same update in torch: rows padded to one length, `micro_rows` of them at a time, their gradients added; log-probs of
    the response columns alone, PPO's ratio, clipping of the norm, AdamW."""

    def __init__(self, engine: Engine, params, ours: learner.Learner):
        torch, model = _load(engine, params, engine.model.compute_dtype)
        self.torch, self.model, batch = torch, model.train(), ours.batch
        self.batch_tokens = torch.tensor(batch.tokens.astype(np.int64))
        self.prompt_columns = batch.tokens.shape[1] - batch.response_mask.shape[1]
        prompts = np.arange(self.prompt_columns) >= self.prompt_columns - batch.prompt_length[:, None]
        self.mask = torch.tensor(np.concatenate([prompts, batch.response_mask], axis=1).astype(np.int64))
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.response_mask = torch.tensor(batch.response_mask.astype(np.float32))
        self.old = torch.tensor(batch.behaviour_logp)
        advantage = batch.reward - batch.reward.mean()
        self.advantage = torch.tensor((advantage / max(advantage.std(), 1e-6))[:, None])
        settings = engine.settings.learner
        self.max_norm, self.micro_rows = settings.max_grad_norm, ours.micro_rows
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
        )  # fmt: skip
        self.tokens, self.flops = ours.tokens, ours.flops

    def _loss(self, rows: slice):
        """The part of the token-mean loss that these rows add."""
        first = self.prompt_columns - 1  # the column that predicts the first response token
        logits = self.model(
            self.batch_tokens[rows, :-1], attention_mask=self.mask[rows, :-1],
            position_ids=self.positions[rows, :-1], use_cache=False, logits_to_keep=slice(first, None),
        ).logits.float()  # fmt: skip
        target = self.batch_tokens[rows, first + 1 :, None]
        logp = logits.gather(-1, target)[..., 0] - logits.logsumexp(-1)
        gain = (logp - self.old[rows]).exp() * self.advantage[rows] * self.response_mask[rows]
        return -gain.sum() / self.response_mask.sum()

    def run(self) -> None:
        for start in range(0, len(self.batch_tokens), self.micro_rows):
            self._loss(slice(start, start + self.micro_rows)).backward()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Products(Work):
    """The same products in torch."""

    def __init__(self, ours: learner.Products, dtype: str):
        import torch

        def of(tree):
            return {name: torch.tensor(np.asarray(x, np.float32)).to(getattr(torch, dtype)) for name, x in tree.items()}

        self.inputs, self.layers = of(ours.inputs), [of(layer) for layer in ours.layers]
        self.inference_mode, self.tokens, self.flops = torch.inference_mode, ours.tokens, ours.flops

    def run(self) -> None:
        with self.inference_mode():
            for layer in self.layers:
                for name, matrix in layer.items():
                    x = self.inputs[name]
                    y = x @ matrix
                    y @ matrix.T, x.T @ y
