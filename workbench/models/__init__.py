"""Networks: ours by name, yours by file; Keras models frozen into graphs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "files": ["open_model"],
        "freezing": ["FrozenGraph"],
    },
)
