"""Parameters with which methods act on a tiny random model, which remembers nothing."""

ACTING = {
    "wen": {"target": 0.01, "iterations": 2},
    "nemo": {"threshold": 0.05, "seeds": 3},
    "random_neurons": {"threshold": 0.05, "seeds": 3},
    "wanda": {"sparsity": 0.1},
    "sail": {"threshold": 0.1, "steps": 2, "attempts": 1},
    "prss": {"l_ss": 1e-4, "l_pr": 1e-4, "full": 0.1},
}
