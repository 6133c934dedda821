# SPDX-License-Identifier: Apache-2.0
"""The shared entry point of the engine scripts: configuration loading and error reporting."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nemo_launcher import exit_status, requirements
from nemo_launcher.config.literal import literal_config, plain_mapping
from nemo_launcher.config.load import Loaded, Section, load
from nemo_launcher.errors import Problem, UserError, environment_message
from nemo_launcher.files.foreign import first_line
from nemo_launcher.files.foreign_yaml import load_yaml
from nemo_launcher.launcher.outputs import held_outputs
from nemo_launcher.reports.report import write_job_report
from nemo_launcher.runtime import ranks, signals
from nemo_launcher.runtime.gpu_memory import out_of_memory_message
from nemo_launcher.runtime.quiet import quiet_libraries


def run_script(
    main: Callable[[Loaded[Section]], None], schema: Callable[[Mapping[str, object]], type[Section]]
) -> None:
    """Run `main` on the section that the command line names, `<job>_hydra.yaml [key=value ...]`.

    The section is checked against the schema that `schema` returns for it, as the launcher did before the job, and keys
    that it omits get their defaults. Exits with status 2 for a user's mistake, 1 for a full or unwritable disk, and
    128 + n after signal n, each with a plain message that one rank prints for all.
    Any other exception is a crash and keeps its traceback.
    """
    quiet_libraries()
    if signals.owner() != os.getpid():
        signals.watch()
    try:
        ranks.mute_nonzero_ranks()
        requirements.check_libraries()
        config = load_config(sys.argv[1:])
        kind = schema(config)
        job = load(config, kind)
        with held_outputs(job.values, kind, leader=ranks.rank() == 0):
            main(job)
            if ranks.rank() == 0:
                write_job_report(Path(sys.argv[1]), job.values)
        ranks.destroy_process_group()
    except UserError as error:
        _exit(exit_status.USER_ERROR, str(error), together=True)
    except OSError as error:
        message = environment_message(error)
        if message is None:
            raise
        _exit(exit_status.FAILED, message)
    except RuntimeError as error:
        message = out_of_memory_message(error, _LESS_MEMORY)
        if message is not None:
            _exit(exit_status.USER_ERROR, message)
        if not ranks.is_lost_connection(error):
            raise
        _exit(exit_status.FAILED, _LOST, without_store=True)
    except signals.Stopped as stopped:
        _exit(exit_status.of_signal(stopped.number), f"{signal.Signals(stopped.number).name}: stopped")
    except KeyboardInterrupt:
        _exit(exit_status.INTERRUPTED, "interrupted")


def load_config(arguments: Sequence[str]) -> dict[str, object]:
    """Return the values of the YAML file in `arguments[0]`, with the `key=value` arguments after it applied.

    Raises UserError when the file is missing, when it is not a YAML mapping, or when an override is malformed.
    """
    if not arguments:
        raise UserError(
            Problem("command line", "no config file", f"run: {sys.argv[0]} <job>_hydra.yaml [key=value ...]")
        )
    path, overrides = Path(arguments[0]), list(arguments[1:])
    problems = [
        Problem("command line", f"{override!r} is not an override", "write key=value, such as model.data.add_eos=False")
        for override in overrides
        if "=" not in override
    ]
    if not path.is_file():
        problems.append(Problem(str(path), "no such file", "write the path of a <job>_hydra.yaml"))
    if problems:
        raise UserError(problems)
    try:
        values = load_yaml(path)
        if not isinstance(values, dict):
            raise UserError(Problem(str(path), "is not a YAML mapping", "write the path of a <job>_hydra.yaml"))
        config = literal_config(values)  # the launcher has already resolved all interpolations
        config.merge_with_dotlist(overrides)
    except (OmegaConfBaseException, YAMLError) as error:
        what = f"cannot be read: {first_line(error)}"
        raise UserError(Problem(str(path), what, "correct the YAML or the overrides")) from error
    try:
        return plain_mapping(config)
    except OmegaConfBaseException as error:
        raise UserError(Problem(str(error.full_key), str(error.msg).splitlines()[0])) from error


_LESS_MEMORY = (
    "set model.data.layout=fixed and lower model.micro_batch_size (of an evaluation, lower inference.batch_size)"
)
_LOST = "another rank has ended, and this one with it; the other rank's message or exit status tells why"


def _exit(status: int, message: str, *, without_store: bool = False, together: bool = False) -> None:
    sys.stdout.flush()
    if ranks.is_first_report(message, without_store=without_store):
        print(message, file=sys.stderr, flush=True)
    if together:
        ranks.leave_together()
    sys.exit(status)
