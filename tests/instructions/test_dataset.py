"""What the generators' streams hold: constraint types kept out of training are in no training row."""

from collections import Counter

import pytest

from hir_jax import config as configs
from hir_jax.instructions import dataset

UNSEEN = {
    "witness": ("training:questions", "startend:end_checker", "tiny:one_of"),
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
