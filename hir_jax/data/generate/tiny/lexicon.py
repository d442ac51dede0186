"""The lexicon of the tiny environment: its words, and a word-level tokenizer over them as an ordinary Hugging Face one.

A token is a word, a number or a mark together with the space before it, if there is one (" river", "The", "."), so that
joining the tokens gives exactly the text. Content words have one form only, lower-case after a space: a word is then the same
token in a prompt and in a response, which a very small model can copy. No content word occurs inside another entry, since
IFEval's keyword checks search inside words too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def _words(lines: str) -> tuple[str, ...]:
    return tuple(lines.split())


NOUNS = _words(
    """
    garden window forest candle mirror harbor market island engine ladder rocket doctor sailor tiger rabbit falcon
    """
)
SUBJECTS = _words("river lamp bridge castle")  # a text has exactly one of them
ADJECTIVES = _words("ancient quiet golden tiny brave gentle")
VERBS = _words("sings waits sleeps dances grows shines falls drifts")
ADVERBS = _words("slowly today forever tonight")
PRESENT_OR_ABSENT = _words("softly again")  # adverbs that a text has or not
DETERMINERS = _words("the my our this that")
OPENINGS = _words("The My Our This")
REPEATED = "every"  # a determiner that a text has a given number of times
PREPOSITIONS = _words("near under with beside")
GENRES = _words("note poem story letter tale report diary speech")
POSTSCRIPT = "P.S."
CLOSINGS = ("Good night.", "Thank you.", "Stay safe.", "Take care.")
LARGEST_NUMBER = 24

_CONSTRAINT_WORDS = _words(
    """
    a about at least less than only words word times text parts line by into exactly with no bullets
    """
)
_FIRST_WORDS = _words("Write Use Avoid Split List Add End Start Name")
# The fixed words of template type3 ("The output must follow the following rules:").
_TEMPLATE_WORDS = _words("output must follow following rules")
_TIGHT_MARKS = (*_words(". , ! ? : ; - *"), "\n", "\n\n", "\n***\n", " ")
_SPACED_MARKS = ("*", "***")

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
PAD, UNKNOWN = "<pad>", "<unk>"
SPECIAL = (PAD, UNKNOWN, USER, ASSISTANT, END)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# One token of text. Longer marks come before their parts; the last choice makes any other character a token (<unk>).
PATTERN = r"\n\*\*\*\n|\n\n|\n| ?(?:P\.S\.|[A-Za-z]+|[0-9]+|\*\*\*|[.,!?:;\-*])| |[^\n]"
_TOKEN = re.compile(PATTERN)


def pieces(text: str) -> list[str]:
    """Splits `text` into tokens (their concatenation is `text`), in pure Python, as the tokenizer does."""
    return _TOKEN.findall(text)


def vocabulary() -> list[str]:
    """All entries, special tokens first; the index in the list is the token id."""
    spaced = (*NOUNS, *SUBJECTS, *ADJECTIVES, *VERBS, *ADVERBS, *PRESENT_OR_ABSENT, *PREPOSITIONS, *GENRES)
    spaced += (*_CONSTRAINT_WORDS, *_TEMPLATE_WORDS, POSTSCRIPT, *_SPACED_MARKS)
    spaced += tuple(word for closing in CLOSINGS for word in closing.removesuffix(".").split())
    spaced += tuple(str(n) for n in range(LARGEST_NUMBER + 1))
    both = [form for word in (*DETERMINERS, REPEATED) for form in (word, word.capitalize())] + list(_FIRST_WORDS)
    tight = (*_TIGHT_MARKS, POSTSCRIPT, *(str(n) for n in range(1, 10)))
    entries = [*SPECIAL, *tight, *(" " + word for word in spaced)]
    for word in both:
        entries += [word, " " + word]
    return list(dict.fromkeys(entries))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer: lossless on the texts of this environment, `<unk>` for any other word.

    `<|end|>` ends a turn and is the stop token; the chat template is `<|user|>` text `<|end|>` `<|assistant|>`.
    Saves and loads like any other tokenizer (`save_pretrained`, `AutoTokenizer.from_pretrained`).
    """
    # Imported here because it takes seconds, and generating texts needs only the words above.
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = vocabulary()
    tokenizer = Tokenizer(models.WordLevel({entry: i for i, entry in enumerate(entries)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
