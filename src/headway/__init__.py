"""Train models on rented GPUs and lose nothing: not a step, not a dollar, not an experiment."""
