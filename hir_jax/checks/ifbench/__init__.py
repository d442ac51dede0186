"""The 58 instruction types of IFBench (arXiv 2507.02833), with the verdicts of the published scorer, quirks included.

Behaviour: allenai/IFBench as evaluated with HiR (arXiv 2512.23457), whose sentences are `english.rule_sentences`. A
quirk is named where a reader would stumble on it. Where the published code draws a random argument, here it is an error
(see `registry`); where it stops with an exception on a response, the verdict is False, and in loose mode that of all forms
(`registry.ScorerStopsError`).

Generated are the types that can be added to a task. The others replace the task (custom:*, repeat:*, format:options), or
constrain every word of the response so that nothing else fits beside them.

Engines: the patterns written out in the four modules are the scorer's own, for Python's `re`, and those of
`english.rule_sentences` too. Runs of letters, which count:word_count_range and ratio:stop_words count, and the tokens and
tags of `english.word_tokens` are NLTK's, with the `regex` package (see `english`). Words between white space are those of
`str.split`.
"""

# Constraints are drawn in the order of registration, so another order of these imports would generate other rows.
# isort: off
from hir_jax.checks.ifbench import counts as counts
from hir_jax.checks.ifbench import words as words
from hir_jax.checks.ifbench import format as format
from hir_jax.checks.ifbench import custom as custom
# isort: on
