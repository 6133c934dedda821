"""The training job: the ModelPT, the optimisation step, resume."""
