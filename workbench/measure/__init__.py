"""How fast, how large, and at which precision."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "latency": ["time_runners"],
        "rows": ["Rows", "compare_runs", "load_recording", "load_rows"],
    },
)
