"""The 25 instruction types of IFEval (arXiv 2311.07911), with the verdicts of the published scorer, quirks included.

Behaviour: google-research/instruction_following_eval as evaluated with HiR (arXiv 2512.23457), which adds five Chinese
answers to constrained_response and reads langdetect's "zh-cn" as "zh". A quirk is named where a reader would stumble on
it. Unlike there, unusable arguments are errors (see `registry`), and so are blank keywords, phrases and markers.

Engines: the patterns written out in these modules are the scorer's own, for Python's `re` (keywords, dividers, markers and
section heads among them). Counts of words, sentences and capital words are NLTK's, with the `regex` package (see `english`).
"""

# Constraints are drawn in the order of registration, so another order of these imports would generate other rows.
# isort: off
from hir_jax.checks.ifeval import case as case
from hir_jax.checks.ifeval import format as format
from hir_jax.checks.ifeval import keywords as keywords
from hir_jax.checks.ifeval import length as length
# isort: on
