"""Models, gradients and steps. Knows no run directory, no network, and no recipe by name."""
