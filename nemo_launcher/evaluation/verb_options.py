# SPDX-License-Identifier: Apache-2.0
"""Options that console verbs about models and data share. Imports nothing heavy."""

from __future__ import annotations

import argparse

from nemo_launcher.errors import Problem

_MAX_DIGITS = 9


def add_prompt_options(verb: argparse.ArgumentParser) -> None:
    """Add the options that determine how records become prompts."""
    verb.add_argument("--template", metavar="TEXT", help="the prompt template for the records (default: the adapter's)")
    verb.add_argument("--answer-field", metavar="NAME", help="the field of --template that holds the answer")
    settings = "change a key of the adapter's configuration, such as data.add_bos=True; may be repeated"
    verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help=settings)


def positive(text: str) -> int:
    """Return a whole number of at least 1, for argparse."""
    value = int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def text_problems(options: argparse.Namespace) -> list[Problem]:
    """Return a problem for each text option (prompts, templates, field names, settings) that is not valid UTF-8."""
    given = {
        "--template": [options.template],
        "--answer-field": [options.answer_field],
        "--prompt": getattr(options, "prompt", None) or [],
        "--set": options.settings,
    }
    return [
        Problem(option, f"{value!r} is not UTF-8", "set a UTF-8 locale, or write the text into a JSONL file")
        for option, values in given.items()
        for value in values
        if value is not None and any("\ud800" <= character <= "\udfff" for character in value)
    ]
