"""A scoring function of your own: registered as a constraint, asked for in the data, trained on by HiR.

    python examples/custom_reward.py [WORKDIR] [STEPS]

The tiny model begins at random; take `--config=smollm2_135m_hir` or your own model to see it learn (docs/constraints.md).
"""

import json
import sys
from pathlib import Path

from hir_jax import load_config, register
from hir_jax.train import train


@register("mine:long_words", lambda count: f"Use at least {count} words of seven letters or more.")
def long_words(response: str, count: int) -> bool:
    """The reward: 1 where this and every other constraint of the row is met. A row that meets some of them is replayed."""
    return sum(len(word) >= 7 for word in response.split()) >= count


def main(workdir: Path, steps: int) -> None:
    asked = [{"id": "mine:long_words", "arguments": {"count": 2}}, {"id": "punctuation:no_comma"}]
    rows = [{"task": f"Write text {i}.", "template": "type1", "constraints": asked} for i in range(32)]
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config("tiny_hir")
    config.data.source, config.data.path = "jsonl", str(workdir / "rows.jsonl")
    config.total_steps, config.eval_every, config.constraints.on_device = steps, 0, False
    train(config, workdir / "run")  # metrics.jsonl, replays.jsonl, report.html and the trained model


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(Path(arguments[0] if arguments else "runs/custom_reward"), int(arguments[1]) if arguments[1:] else 3)
