"""mkdocs hook: the table of all config keys, from the comments beside them in hir_jax/config.py."""

import re
from pathlib import Path

from hir_jax import config
from hir_jax.checks.judge import soft as judge

MARK = "<!-- every key of hir_jax/config.py; made by docs/hooks.py -->"
KEY = re.compile(r"    (\w+)\.(\w+) = (?:(\w+) = )?(.*?)(?:  # (.*))?$")
JUDGE_KEY = re.compile(r"^    (\w+): \w+ = .*?  # (.*)$", re.MULTILINE)
HEAD = ["| key | default | meaning |", "|---|---|---|"]


def config_tables() -> str:
    """Markdown: a heading and a table for each group of keys, in the order in which `defaults` declares them. A comment on lines
    of its own goes with the key below it, or, above a group, below its heading."""
    defaults = config.flatten(config.defaults())
    body = _text(config).split("def defaults()", 1)[1].split("\n    return c\n", 1)[0]
    prefix, notes, parts = {"c": ""}, [], ["## Run", "", *HEAD]

    def row(key: str, *texts: str) -> str:
        meaning = ". ".join(text.rstrip(".") for text in texts if text).replace("|", "\\|")
        return f"| `{key}` | `{defaults[key]!r}` | {meaning} |"

    for line in body.splitlines():
        if line.startswith("    # "):
            notes.append(line[6:])
            continue
        found = KEY.match(line)
        if not found:
            continue
        owner, name, alias, value, comment = found.groups()
        key, note, notes = prefix[owner] + name, " ".join(notes), []
        if key == "constraints.judge":
            settings = _text(judge).split("class JudgeSettings", 1)[1].split("def __post_init__", 1)[0]
            parts += [row(f"{key}.{n}", text) for n, text in JUDGE_KEY.findall(settings)]
        elif "ConfigDict(" in value:
            prefix[alias] = f"{key}."
            if owner == "c":
                parts += ["", f"## {key}", "", *([note, ""] if note else []), *HEAD]
        else:
            parts.append(row(key, comment or "", note))
    return "\n".join(parts)


def _text(module) -> str:
    return Path(module.__file__).read_text(encoding="utf-8")


def on_page_markdown(markdown, page, **_):
    return markdown.replace(MARK, config_tables())
