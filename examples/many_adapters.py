# SPDX-License-Identifier: Apache-2.0
"""Many adapters on one base: python examples/many_adapters.py BASE.nemo PROMPT ADAPTER.nemo ADAPTER.nemo ...

The base is loaded once. Each adapter answers the prompt, and at the end the frozen base does.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from nemo_launcher import Model, UserError


def main() -> None:
    """Answer one prompt with each adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("adapters", type=Path, nargs="+")
    options = parser.parse_args()

    model = Model.load(options.base)
    for adapter in options.adapters:
        start = time.perf_counter()
        try:
            model.load_adapter(adapter)
        except UserError as error:  # of another base, or damaged; the model keeps the adapter before
            print(f"{adapter}: left out\n{error}")
            continue
        seconds = time.perf_counter() - start
        (answer,) = model.generate([options.prompt], tokens_to_generate=20)
        print(f"{adapter} (loaded in {seconds:.2f} s): {answer.text}")
    model.unload_adapter()
    (answer,) = model.generate([options.prompt], tokens_to_generate=20)
    print(f"{options.base} alone: {answer.text}")


if __name__ == "__main__":
    main()
