# SPDX-License-Identifier: Apache-2.0
"""The keys of every configuration section, and what each may hold; values and defaults are in conf/.

A field without a default has to be in the configuration, one with a default is filled in, an OPTIONAL one may stay out.
"""

from nemo_launcher.config.sections.learning import AdapterLearning, Ia3Learning
from nemo_launcher.config.sections.other import Conversion, DataPreparation, Evaluation
from nemo_launcher.config.sections.top_level import Cluster, TopLevel

__all__ = ["AdapterLearning", "Cluster", "Conversion", "DataPreparation", "Evaluation", "Ia3Learning", "TopLevel"]
