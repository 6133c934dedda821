# SPDX-License-Identifier: Apache-2.0
"""Errors in the words of the Python interface: argument names instead of console options."""

from __future__ import annotations

import dataclasses
import re

from nemo_launcher.errors import Problem

_RENAMED = {"precision": "dtype"}
_PROMPT = re.compile(r"--prompt (\d+)")
_SETTING = re.compile(r"--set (\S+?)=(\S+)")
_SETTING_KEY = re.compile(r"--set (\S+)")
_VALUE = re.compile(r"--(template|answer-field) ('[^']*'|\w+)(?: (?=--))?")
_NAME = re.compile(r"--([a-z][a-z-]*)")


def in_python(problem: Problem) -> Problem:
    """Return a problem with the arguments of Model's methods in place of the console command's options."""
    return dataclasses.replace(problem, where=_reworded(problem.where), fix=_reworded(problem.fix))


def _reworded(text: str) -> str:
    text = _PROMPT.sub(lambda match: f"prompts[{int(match[1]) - 1}]", text)
    text = _SETTING.sub(r"settings={'\1': '\2'}", text)
    text = _SETTING_KEY.sub(r"settings: \1", text)
    text = _VALUE.sub(_argument, text)
    text = _NAME.sub(lambda match: _python_name(match[1]), text)
    return text.removeprefix("inference.")


def _argument(match: re.Match[str]) -> str:
    more = ", " if match[0].endswith(" ") else ""
    return f"{_python_name(match[1])}='{match[2].strip(chr(39))}'{more}"


def _python_name(option: str) -> str:
    return _RENAMED.get(option, option.replace("-", "_"))
