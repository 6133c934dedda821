# SPDX-License-Identifier: Apache-2.0
"""The keys and types of every configuration section; values are in conf/.

A field without a default is required, a field with a default is filled in when absent, and a field with `optional`
stays absent.
"""

from nemo_launcher.config.sections.learning import Learning
from nemo_launcher.config.sections.other import Conversion, DataPreparation, Evaluation
from nemo_launcher.config.sections.top_level import TopLevel

__all__ = ["Conversion", "DataPreparation", "Evaluation", "Learning", "TopLevel"]
