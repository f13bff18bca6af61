"""Is it still right: which stage, which layer, which pixels."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "stages": ["verify"],
        "divergence": ["first_divergence"],
        "segmentation": ["compare_segmentation"],
    },
)
