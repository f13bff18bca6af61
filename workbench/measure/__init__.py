"""How fast, how large, and at which precision."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "latency": ["compare_runners", "measure"],
        "grid": ["grid", "run_grid"],
        "precision_sweep": ["precision_sweep"],
    },
)
