"""One contract, any backend: open a network, run it, compare two."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "backends": ["open_runner", "backend_for"],
        "compare": ["compare_runners", "shared_specs"],
        "machine": ["environment", "diagnose"],
        "torch_runner": ["TorchRunner"],
    },
)
