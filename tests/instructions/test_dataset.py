"""What the generators' streams hold: constraint types kept out of training are in no training row."""

import copy
from collections import Counter

import pytest
from tokenizers import normalizers

from hir_jax import config as configs
from hir_jax.instructions import dataset
from hir_jax.instructions.roles import chat_frame
from hir_jax.models.checkpoint import open_checkpoint
from hir_jax.types import Constraint, Instruction

UNSEEN = {
    "witness": ("training:word_times", "startend:end_checker", "tiny:one_of"),
    "generated": ("punctuation:no_comma", "startend:quotation", "detectable_format:title"),
}


def config_of(source, **data):
    config = configs.defaults()
    config.data.update(
        {"source": source, "size": 200, "eval_size": 60, "min_constraints": 2, "max_constraints": 3} | data
    )
    return config


@pytest.mark.parametrize("source", ["witness", "generated"])
def test_unseen_types_are_never_trained_on(source):
    def types(instructions):
        return {constraint.id for instruction in instructions for constraint in instruction.constraints}

    unseen = UNSEEN[source]
    config, without = config_of(source, unseen_ids=unseen), config_of(source)
    trained = types(instruction for instruction, _ in dataset._training(config, Counter()))
    assert trained and not trained & set(unseen) and not types(dataset.heldout(config)) & set(unseen)
    assert types(dataset.unseen(config)) == set(unseen)
    assert types(instruction for instruction, _ in dataset._training(without, Counter())) >= set(unseen)


@pytest.mark.parametrize("source", ["witness", "generated"])
def test_a_misspelt_type_is_named(source):
    config = config_of(source, unseen_ids=("punctuation:no_coma", "startend:quotation"))
    with pytest.raises(dataset.InputError, match="punctuation:no_coma"):
        dataset._training(config, Counter())


def test_refused_rows_are_counted_by_their_reason(caplog):
    """Two of four rows have a normal form that renders otherwise; the first of them is logged."""
    tokenizer = copy.deepcopy(open_checkpoint("smollm2-135m-gguf").tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    texts = (("Be brief.", "Why？"), ("Be brief.", "Why?"), ("Why？",), ("No comma", "No dots"))
    rows = [
        Instruction(
            "Ask.", tuple(Constraint("punctuation:no_comma", {}, text) for text in some), "type1", "", f"row {i}"
        )
        for i, some in enumerate(texts)
    ]
    counts, fit = Counter(), dataset._Fit(chat_frame(tokenizer), 200, True, frozenset())
    assert [i for i, _ in dataset._encode_rows(fit, rows, counts)] == [1, 3]
    assert counts == {"normal form": 2} and caplog.text.count("left out (normal form): row 0: ") == 1
