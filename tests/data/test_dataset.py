"""The data set of a run: constraint types and rows kept out of training, rows left out by reason."""

import copy
from collections import Counter

import pytest
from tokenizers import normalizers

from hir_jax import config as configs
from hir_jax.data import dataset, native
from hir_jax.data.chat_frame import chat_frame
from hir_jax.data.generate.tiny import lexicon
from hir_jax.model.files.checkpoint import open_checkpoint
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
    trained = types(instruction for instruction, _ in dataset._pairs(config, "train", Counter()))
    assert trained and not trained & set(unseen) and not types(dataset.heldout(config)) & set(unseen)
    assert types(dataset.unseen(config)) == set(unseen)
    assert types(instruction for instruction, _ in dataset._pairs(without, "train", Counter())) >= set(unseen)


@pytest.mark.parametrize("source", ["witness", "generated"])
def test_a_misspelt_type_is_named(source):
    config = config_of(source, unseen_ids=("punctuation:no_coma", "startend:quotation"))
    with pytest.raises(dataset.InputError, match="punctuation:no_coma"):
        dataset._pairs(config, "train", Counter())


def test_refused_rows_are_counted_by_their_reason(caplog):
    """Two of four rows render differently in normal form; the first of them is logged."""
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


def file_config(path, tasks, **data):
    """A config of a file with two rows for each task, of different constraints."""
    ids = ("punctuation:no_comma", "startend:quotation")
    native.write(
        path, [Instruction(task, (Constraint(id, {}, "."),), "type1", task + id) for id in ids for task in tasks]
    )
    config = configs.defaults()
    config.data.update({"source": "jsonl", "path": str(path)} | data)
    configs.check(config)
    return config


def test_rows_held_out_of_a_file(tmp_path):
    """Tasks are held out with all their rows, whatever the file's order. At most eval_size rows are evaluated."""
    tasks = [f"write {i} words" for i in range(20)]
    config = file_config(tmp_path / "rows.jsonl", tasks, hold_out=5)
    pairs, held = dataset._read(config, Counter())
    assert len(held) == 6 and len(pairs) == 34  # three tasks, two rows each
    assert not {q.task for q in held} & {q.task for q, _ in pairs}
    assert [q.key for q in dataset.heldout(config)] == [q.key for q in held]
    turned, _ = dataset._read(file_config(tmp_path / "turned.jsonl", tasks[::-1], hold_out=5), Counter())
    assert {q.key for q, _ in turned} == {q.key for q, _ in pairs}
    few = file_config(tmp_path / "rows.jsonl", tasks, hold_out=5, eval_size=2)
    assert len(dataset.heldout(few)) == 2 and len(dataset._read(few, Counter())[0]) == 34
    loaded = dataset.load(config, chat_frame(lexicon.build_tokenizer()), 0)
    assert len(loaded.rows) == 34 and [row.instruction.key for row in loaded.heldout] == [q.key for q in held]


def test_holding_everything_out_is_refused(tmp_path):
    with pytest.raises(
        dataset.DataError, match=r"config.data.hold_out = 3 leaves no task of .*rows.jsonl to train on \(2 tasks"
    ):
        dataset._read(file_config(tmp_path / "rows.jsonl", ["a", "b"], hold_out=3), Counter())


@pytest.mark.parametrize("changes", [{"source": "generated"}, {"eval_path": "more.jsonl"}], ids=str)
def test_holding_out_where_there_is_no_such_file_is_refused(changes):
    config = configs.defaults()
    config.data.update({"source": "jsonl", "path": "rows.jsonl", "hold_out": 3} | changes)
    with pytest.raises(configs.ConfigError, match=r"config.data.hold_out = 3 .* set it to 0"):
        configs.check(config)
