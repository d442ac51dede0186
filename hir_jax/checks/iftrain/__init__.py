"""The 29 types that IF-RLVR trains on beside IFEval's 25 (arXiv 2507.02833), with the published verdicts, quirks included.

Ids and behaviour: `open_instruct/IFEvalG` of allenai/open-instruct, its instructions.py at commit 42c6d0d and its
instructions_registry.py at 32fc139. Other files of these names, with other ids, are in circulation. Its types of IFEval are those
of `ifeval`. As there, a blank response meets nothing; unlike there, unusable arguments are errors (see `registry`).

Engines: all patterns, keywords among them, are for Python's `re`. Sentences are `english.rule_sentences`, and tokens those of
NLTK (`english.word_tokens`), so that a punctuation mark is a token.
"""

from hir_jax.checks.iftrain import form as form
from hir_jax.checks.iftrain import words as words
