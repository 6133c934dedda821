# SPDX-License-Identifier: Apache-2.0
"""The keys of every configuration section, and what each may hold; values and defaults are in conf/.

A field without a default has to be in the configuration, one with a default is filled in, one with `optional` may stay
out.
"""

from nemo_launcher.config.sections.learning import Ia3Learning, Learning
from nemo_launcher.config.sections.other import Conversion, DataPreparation, Evaluation
from nemo_launcher.config.sections.top_level import TopLevel

__all__ = ["Conversion", "DataPreparation", "Evaluation", "Ia3Learning", "Learning", "TopLevel"]
