# SPDX-License-Identifier: Apache-2.0
"""The console command `nemo-launcher`: launch stages, manage their jobs, use a trained adapter."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from nemo_launcher import __version__, exit_status
from nemo_launcher.adapters.forms.export_verb import EXPORT_VERBS
from nemo_launcher.adapters.forms.import_verb import IMPORT_VERBS
from nemo_launcher.adapters.forms.merge_verb import MERGE_VERBS
from nemo_launcher.errors import Problem, UserError, did_you_mean, environment_message
from nemo_launcher.evaluation.data_verb import DATA_VERBS
from nemo_launcher.evaluation.harness_verb import HARNESS_VERBS
from nemo_launcher.evaluation.verb_options import add_prompt_options, positive, text_problems
from nemo_launcher.jobs.verbs import VERBS as JOB_VERBS
from nemo_launcher.jobs.verbs import Verb
from nemo_launcher.launcher.migrate_verb import MIGRATE_VERBS
from nemo_launcher.reports.verb import REPORT_VERBS
from nemo_launcher.runtime import signals
from nemo_launcher.runtime.gpu_memory import out_of_memory_message
from nemo_launcher.runtime.quiet import quiet_libraries
from nemo_launcher.runtime.startup import quick_imports

if TYPE_CHECKING:
    from nemo_launcher.api.model import Model
    from nemo_launcher.evaluation.results import Results

_OPTION_ALIASES = {
    "--model": "--base",
    "--max-tokens": "--tokens-to-generate",
    "--max-new-tokens": "--tokens-to-generate",
    "--max-length": "--tokens-to-generate",
    "--out": "--output",
    "-o": "--output",
    "--dtype": "--precision",
    "--input": "--jsonl",
    "--file": "--jsonl",
}
"""The names that other programs give to our options."""
_DRAWING = ("top_k", "top_p", "temperature", "repetition_penalty")
_FIRST_RECORDS = 20
"""Number of records of a data file that are checked before the base model is loaded."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return a status of nemo_launcher.exit_status. A closed output pipe counts as FAILED."""
    if arguments is None and sys.argv[1:2] in (["generate"], ["score"], ["lm-eval"]):
        signals.raise_on_termination()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["launch"]:
        return _launch(arguments[1:])
    if isinstance(sys.stdout, io.TextIOWrapper):  # characters that the terminal cannot show become \\x..
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options = parse(arguments)
        quiet_libraries()
        return int(options.run(options))
    except UserError as error:
        return _fail(exit_status.USER_ERROR, str(error))
    except BrokenPipeError:  # `| head` has read enough
        _drop_output()
        return exit_status.FAILED
    except OSError as error:
        message = environment_message(error)
        if message is None:
            raise
        _drop_output()
        return _fail(exit_status.FAILED, message)
    except RuntimeError as error:
        message = out_of_memory_message(
            error, "lower --batch-size (of lm-eval: --batch_size), use --precision bf16 (16 before Ampere)"
        )
        if message is None:
            raise
        return _fail(exit_status.USER_ERROR, message)
    except signals.Stopped as stopped:
        return _fail(exit_status.of_signal(stopped.number), f"{signal.Signals(stopped.number).name}: stopped")
    except KeyboardInterrupt:
        return _fail(exit_status.INTERRUPTED, "interrupted")


def _drop_output() -> None:
    """Discard unwritten output; otherwise the interpreter reports the same error again when it flushes at exit."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports its errors as UserError."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage and exiting."""
        raise UserError(Problem(self.prog, message, f"{self.prog} --help lists all arguments"))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a verb. Raises UserError for unknown, missing and invalid ones; --help exits."""
    parser = _Parser(prog="nemo-launcher", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"nemo-adapter-launcher {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    verbs.add_parser("launch", help="launch stages: the same as main.py, with the same arguments", add_help=False)
    known: dict[str, list[str]] = {}
    for name, (add_options, text) in _VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        add_options(verb)
        known[name] = [option for action in verb._actions for option in action.option_strings]
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    if chosen is not None and chosen not in verbs.choices:
        raise UserError(Problem(chosen, "no such verb", did_you_mean(chosen, verbs.choices)))
    # Before argparse, which would report a misspelt required option as missing. The harness has options of its own.
    if chosen in known and chosen not in HARNESS_VERBS:
        _refuse_unknown(_long_options(arguments), known[chosen])
    options, unknown = parser.parse_known_args(arguments)
    if chosen in HARNESS_VERBS:
        options.passed_on = unknown
    elif unknown:
        misspelt = [word.partition("=")[0] for word in unknown if word.startswith("-")] or unknown  # not the values
        _refuse_unknown(misspelt, known.get(chosen or "", []))
    return options


def _long_options(arguments: Sequence[str]) -> list[str]:
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return [word.partition("=")[0] for word in words if word.startswith("--")]


def _refuse_unknown(words: Sequence[str], known: Sequence[str]) -> None:
    problems = []
    for word in words:
        meant = _OPTION_ALIASES.get(word)
        fix = f"did you mean {meant!r}?" if meant in known else did_you_mean(word, known)
        problems += [] if word in known else [Problem(word, "no such argument", fix)]
    if problems:
        raise UserError(problems)


# --- options ----------------------------------------------------------------------------------------------------


def _add_inspect(verb: argparse.ArgumentParser) -> None:
    what = "a .nemo, the .safetensors copy of an adapter, or a folder of PEFT"
    verb.add_argument("file", metavar="FILE", help=what)
    verb.add_argument("--json", action="store_true", help="print all facts as JSON, with the shapes of all adapters")
    verb.set_defaults(run=_inspect)


def _add_session(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--base", required=True, metavar="FILE.nemo", help="the frozen base model")
    verb.add_argument("--adapter", metavar="FILE.nemo", help="an adapter trained on this base model")
    verb.add_argument("--precision", default="32", help="32, bf16 or 16 (default 32)")
    verb.add_argument("--batch-size", type=positive, default=16, metavar="N", help="samples per batch (default 16)")
    add_prompt_options(verb)
    verb.add_argument("--output", metavar="FILE", help="write the results to FILE instead of printing them")


def _add_generate(verb: argparse.ArgumentParser) -> None:
    _add_session(verb)
    given = verb.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompt", action="append", metavar="TEXT", help="a text to continue; may be repeated")
    records = "records to continue; each is returned with prediction and token_ids"
    given.add_argument("--jsonl", metavar="FILE", help=records)
    verb.add_argument("--json", action="store_true", help="with --prompt: one JSON line per prompt, with token_ids")
    verb.add_argument("--tokens-to-generate", type=positive, default=30, metavar="N", help="maximum (default 30)")
    verb.add_argument("--min-tokens-to-generate", type=int, default=0, metavar="N", help="minimum (default 0)")
    verb.add_argument("--seed", type=int, default=1234, help="random seed for sampling (default 1234)")
    drawn = verb.add_argument_group("sampling", "any of these turns sampling on; without them decoding is greedy")
    drawn.add_argument("--sample", action="store_true", help="sample from the model's full distribution")
    drawn.add_argument("--top-k", type=int, metavar="K", help="sample from the K most likely tokens (0: from all)")
    drawn.add_argument("--top-p", type=float, metavar="P", help="sample from the most likely tokens that add up to P")
    drawn.add_argument("--temperature", type=float, metavar="T", help="below 1 favours likely tokens (default 1)")
    penalty = "above 1 makes tokens that already occur in the text less likely (default 1)"
    drawn.add_argument("--repetition-penalty", type=float, metavar="R", help=penalty)
    verb.set_defaults(run=_generate)


def _add_score(verb: argparse.ArgumentParser) -> None:
    _add_session(verb)
    losses = "records with answers; prints one line per record with nll_sum, nll_mean (nats) and answer_tokens"
    verb.add_argument("data", metavar="DATA.jsonl", help=losses)
    verb.set_defaults(run=_score)


_VERBS: dict[str, Verb] = {
    **JOB_VERBS,
    **DATA_VERBS,
    **REPORT_VERBS,
    **HARNESS_VERBS,
    **EXPORT_VERBS,
    **IMPORT_VERBS,
    **MERGE_VERBS,
    **MIGRATE_VERBS,
    "inspect": (_add_inspect, "describe a base or an adapter"),
    "generate": (_add_generate, "continue prompts with a base model, with or without an adapter"),
    "score": (_add_score, "compute the loss of each sample of a file as training does"),
}


# --- verbs ------------------------------------------------------------------------------------------------------


def _launch(overrides: list[str]) -> int:
    """Pass the rest of the command line to the launcher, as main.py does."""
    from nemo_launcher.launcher.launch import main as launch

    sys.argv[1:] = overrides
    return launch()


def _inspect(options: argparse.Namespace) -> int:
    from nemo_launcher.inspection import inspect, readable

    facts = inspect(options.file)
    print(json.dumps(facts, indent=2) if options.json else readable(facts))
    return 0


def _generate(options: argparse.Namespace) -> int:
    with quick_imports():
        from nemo_launcher.api.model import import_engine, sampling_of

        import_engine()
    names = ("tokens_to_generate", "min_tokens_to_generate", "seed", "sample")
    chosen = {name: getattr(options, name) for name in (*names, *_DRAWING)}
    sampling_of(**chosen)  # checked before the base model is loaded
    results = _results(options, options.jsonl, "--jsonl", as_json=options.json or options.jsonl is not None)
    with results:
        prompts = options.prompt if options.jsonl is None else Path(options.jsonl)
        records = {"template": options.template, "answer_field": options.answer_field}
        _model(options).generate(prompts, **records, **chosen, batch_size=options.batch_size, results=results)
    return 0


def _score(options: argparse.Namespace) -> int:
    with quick_imports():
        from nemo_launcher.api.model import as_result, import_engine

        import_engine()
    results = _results(options, options.data, "DATA.jsonl", as_json=True)
    with results:
        settings = {"template": options.template, "answer_field": options.answer_field}
        scores = _model(options).score(options.data, **settings, batch_size=options.batch_size)
        results.end(map(as_result, scores))
    return 0


def _results(options: argparse.Namespace, data: str | None, data_option: str, *, as_json: bool) -> Results:
    """Return the sink for the results after checking options, data and output, none of which needs the model."""
    from nemo_launcher.data.jsonl import json_line
    from nemo_launcher.data.record_checks import check_fields
    from nemo_launcher.evaluation.results import Printed, Written, json_result, output_problems

    problems = text_problems(options)
    if options.answer_field is not None and options.template is None:
        fix = "give --template too, or omit both to use the adapter's task_templates"
        problems.append(Problem("--answer-field", "names a field of --template, which is not given", fix))
    inputs = {"--base": options.base, "--adapter": options.adapter, data_option: data}
    if options.output is not None:
        problems += output_problems(options.output, inputs, json_lines=as_json)
    if data is not None:
        problems += check_fields(data, [], None, limit=_FIRST_RECORDS)
    if problems:
        raise UserError(problems)
    if options.output is None:
        return Printed(json_result if as_json else _prediction)
    return Written(options.output, json_line if as_json else _prediction, like=[data] if data is not None else [])


def _prediction(answer: Mapping[str, object]) -> str:
    return str(answer["prediction"])


def _model(options: argparse.Namespace) -> Model:
    """Load the base model and the adapter. Errors name the command's options."""
    from nemo_launcher.api.model import Model

    files = {"base": options.base, "adapter": options.adapter}
    return Model.load(**files, dtype=options.precision, settings=options.settings, names=lambda problem: problem)


def _fail(status: int, message: str) -> int:
    print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
