"""Tables of a document against made-up results worked by hand; the committed document against the committed results."""

import json

import pytest

from experiments import document
from hir_jax.types import InputError

ENDS = {"ilr": (0.1, 0.3), "clr": (0.2, 0.6)}  # held-out following of two seeds after the last step


def run(end, pass_at_1):
    figures = {
        "following": end,
        "ila_shuffled": 0.01,
        "distinct": 0.9,
        "pass@1": pass_at_1,
        "pass@8": 0.7,
        "entropy": 1.0,
    }
    return {"curve": {"step": [0, 10], "samples": [0, 80], "following": [0.0, end]}, "end": figures}


@pytest.fixture
def results(tmp_path):
    for factor, difficulty in enumerate(document.DIFFICULTIES, 1):
        runs = {v: {str(seed): run(end / factor, 0.5) for seed, end in enumerate(ends)} for v, ends in ENDS.items()}
        (tmp_path / difficulty).mkdir()
        (tmp_path / difficulty / "reward_signal.json").write_text(json.dumps({"commands": [], "runs": runs}))
    area = {"ilr": {"lr 0.0001, kl 0.03": 0.12345, "lr 9e-05, kl 0.001": 0.1}, "clr": {"lr 0.0001, kl 0.001": 0.2}}
    chosen = {
        "ilr": {"learner.learning_rate": 1e-4, "learner.kl": 0.03},
        "clr": {"learner.learning_rate": 1e-4, "learner.kl": 0.001},
    }
    (tmp_path / "tuned.json").write_text(json.dumps({"area": area, "chosen": chosen}))
    return tmp_path


def test_tables_are_filled_in_and_the_rest_is_kept(results):
    text = (
        "# Found\n<!-- across reward_signal following -->\nold\n<!-- end -->\nbetween\n"
        "<!-- suite medium reward_signal -->\n<!-- end -->\n<!-- tuning -->\n<!-- end -->\nlast\n"
    )
    made = document.filled(text, results)
    # at medium all is halved: ilr .05 and .15, clr .1 and .3; gaps .05 and .15, t(.975, 1) = 12.706, standard error .05
    assert (
        "| clr | ilr | 0.400 +- 0.200 | +0.200 (-1.071 to +1.471) | 0.200 +- 0.100 | +0.100 (-0.535 to +0.735) |"
        in made
    )
    assert "| following | less | easy | difference | medium | difference | hard | difference |" in made
    assert "| variant | seeds | following | mean following over samples | ILA, others' constraints |" in made
    assert "have not learnt to follow: ilr, clr." in made  # .1 and .2 of .5
    assert "| lr 9e-05, kl 0.001 | lr 0.0001, kl 0.001 | lr 0.0001, kl 0.03 |" in made
    assert "| ilr | 0.100 |  | **0.123** |" in made and "| clr |  | **0.200** |  |" in made
    assert "old" not in made and "\nbetween\n" in made and made.endswith("\nlast\n")
    assert document.filled(made, results) == made
    (results / "tuned.json").rename(results / "tuned_more.json")
    assert "| **0.200** |" in document.filled("<!-- tuning tuned_more -->\n<!-- end -->\n", results)


def test_what_is_not_there_is_named_with_its_table(results):
    for name, message in (
        ("across reward_signal folowing", "no figure 'folowing'"),
        ("suite medium selection", r"medium: there is no selection\.json"),
        ("suite medium", "suite medium -->: "),
    ):
        with pytest.raises(InputError, match=message):
            document.filled(f"<!-- {name} -->\n<!-- end -->\n", results)


def test_check_says_when_a_document_is_not_of_its_results(results, tmp_path):
    path = tmp_path / "doc.md"
    path.write_text("<!-- across reward_signal pass@1 -->\n<!-- end -->\n")
    arguments = [f"--results={results}", f"--document={path}"]
    with pytest.raises(InputError, match=r"doc\.md: its tables are not the ones of"):
        document.main([*arguments, "--check"])
    document.main(arguments)
    assert "| ilr |  | 0.500 +- 0.000 |" in path.read_text() and (tmp_path / "doc.png").stat().st_size > 10_000
    document.main([*arguments, "--check"])
