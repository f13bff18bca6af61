"""What goes in: pictures and feeds, Cityscapes' classes and colours, folders of pictures with their labels."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "images": ["CITYSCAPES_MEAN", "load_image", "list_images", "rescale_image", "sub_mean_chw", "photographs"],
        "cityscapes": ["CITYSCAPES", "color_map", "argmax_classes", "confusion_matrix", "class_iou", "mean_iou"],
        "feeds": ["make_feeds", "read_feeds"],
        "labels": ["CityscapesDataset", "load_labels", "pair_labels"],
    },
)
