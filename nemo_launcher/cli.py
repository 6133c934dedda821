"""The console command `nemo-launcher`: launch stages, use a trained adapter."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nemo_launcher.errors import UserError
from nemo_launcher.quiet import quiet_libraries


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
    generate = verbs.add_parser("generate", help="let a base model, with or without an adapter, go on from a prompt")
    generate.add_argument("--base", required=True, metavar="FILE.nemo", help="the frozen base model")
    generate.add_argument("--adapter", metavar="FILE.nemo", help="an adapter trained on it")
    generate.add_argument("--prompt", required=True, action="append", help="the text to go on from; may be repeated")
    generate.add_argument("--tokens-to-generate", type=int, default=30, metavar="N", help="at most (default 30)")
    generate.add_argument("--precision", default="32", help="32 or bf16 (default 32)")
    generate.set_defaults(run=_generate)
    return parser


def _generate(options: argparse.Namespace) -> int:
    from nemo_launcher.evaluation.prompting import answer_prompts

    answers = answer_prompts(
        options.base,
        options.adapter,
        options.prompt,
        tokens_to_generate=options.tokens_to_generate,
        precision=options.precision,
    )
    for answer in answers:
        print(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
