"""The console command `nemo-launcher`: launch stages, use a trained adapter."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nemo_launcher.errors import UserError
from nemo_launcher.files import write_text
from nemo_launcher.quiet import quiet_libraries

if TYPE_CHECKING:
    from nemo_launcher.evaluation.session import Session


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status, 2 for a mistake of the user's."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["launch"]:
        return _launch(arguments[1:])
    options = _parser().parse_args(arguments)
    quiet_libraries()
    try:
        return int(options.run(options))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _launch(overrides: list[str]) -> int:
    """Hand the rest of the command line to the launcher, as main.py does."""
    from nemo_launcher.core.launch import main as launch

    sys.argv[1:] = overrides
    return launch()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nemo-launcher", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    verbs.add_parser("launch", help="launch stages: the same as main.py, with the same arguments", add_help=False)
    _add_inspect(verbs.add_parser("inspect", help="say what a .nemo archive is"))
    _add_generate(
        verbs.add_parser("generate", help="let a base model, with or without an adapter, go on from a prompt")
    )
    _add_score(verbs.add_parser("score", help="the loss of each sample of a file"))
    return parser


def _add_inspect(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("file", metavar="FILE.nemo")
    verb.add_argument("--json", action="store_true", help="all facts as JSON, shapes included")
    verb.set_defaults(run=_inspect)


def _add_session(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--base", required=True, metavar="FILE.nemo", help="the frozen base model")
    verb.add_argument("--adapter", metavar="FILE.nemo", help="an adapter trained on it")
    verb.add_argument("--precision", default="32", help="32 or bf16 (default 32)")
    verb.add_argument("--batch-size", type=int, default=16, metavar="N", help="samples at once (default 16)")
    verb.add_argument("--template", help="a prompt template for the records; default: the adapter's")
    verb.add_argument("--answer-field", metavar="NAME", help="the field of --template that is the answer")
    settings = "change a key of the adapter's configuration, such as data.add_bos=True; may be repeated"
    verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help=settings)
    verb.add_argument("--output", metavar="FILE", help="write there, whole or not at all, instead of printing")


def _add_generate(verb: argparse.ArgumentParser) -> None:
    _add_session(verb)
    given = verb.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompt", action="append", help="a text to go on from; may be repeated")
    given.add_argument(
        "--jsonl", metavar="FILE", help="records to go on from: each comes back with prediction, token_ids"
    )
    verb.add_argument("--tokens-to-generate", type=int, default=30, metavar="N", help="at most (default 30)")
    verb.add_argument("--min-tokens-to-generate", type=int, default=0, metavar="N", help="at least (default 0)")
    verb.add_argument("--sample", action="store_true", help="draw tokens instead of taking the most likely one")
    verb.add_argument("--top-k", type=int, default=0, metavar="K", help="of the K most likely, 0: of all")
    verb.add_argument("--top-p", type=float, default=0.0, metavar="P", help="of those that together have P, 0: of all")
    verb.add_argument("--temperature", type=float, default=1.0, metavar="T")
    verb.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R")
    verb.add_argument("--seed", type=int, default=1234)
    verb.set_defaults(run=_generate)


def _add_score(verb: argparse.ArgumentParser) -> None:
    _add_session(verb)
    verb.add_argument("data", metavar="DATA.jsonl", help="each record comes back as nll_sum, nll_mean, answer_tokens")
    verb.set_defaults(run=_score)


def _inspect(options: argparse.Namespace) -> int:
    from nemo_launcher.checkpoint.inspection import inspect

    facts = inspect(options.file)
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    adapters = facts.pop("adapters", {})
    for name, value in facts.items():
        shown = f"{value:,}" if type(value) is int else value
        print(f"{name.replace('_', ' '):<22}{shown}")
    if adapters:
        shapes = ", ".join(f"{name} {shape}" for name, shape in next(iter(adapters.values())).items())
        print(f"{'adapters':<22}{len(adapters)}, the first {next(iter(adapters))}: {shapes}")
    return 0


def _generate(options: argparse.Namespace) -> int:
    from nemo_launcher.evaluation.prompting import answer_prompts, answer_records

    session = _session(options)
    names = ("tokens_to_generate", "min_tokens_to_generate", "top_k", "top_p", "temperature", "repetition_penalty")
    inference = {name: getattr(options, name) for name in (*names, "seed", "batch_size")}
    inference |= {"greedy": not options.sample, "add_BOS": None}
    if options.prompt:
        return _give(answer_prompts(session, options.prompt, inference), options.output)
    records = answer_records(session, options.jsonl, options.template, options.answer_field, inference)
    return _give((json.dumps(record, ensure_ascii=False) for record in records), options.output)


def _score(options: argparse.Namespace) -> int:
    from nemo_launcher.evaluation.scoring import score

    session = _session(options)
    samples = session.samples(options.data, options.template, options.answer_field, session.encoder())
    results = score(session.base, samples, batch_size=options.batch_size)
    return _give((json.dumps(result) for result in results), options.output)


def _session(options: argparse.Namespace) -> Session:
    from nemo_launcher.evaluation.session import Session

    return Session.open(options.base, options.adapter, precision=options.precision, settings=options.settings)


def _give(lines: Iterable[str], output: str | None) -> int:
    if output is None:
        for line in lines:
            print(line)
    else:
        write_text(output, "".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
