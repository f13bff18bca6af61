"""Street scenes made from a seed, with the exact Cityscapes label of every pixel.

`plan` decides what stands where, `background` and one module for each kind of thing paint it on a `canvas`, and
`photograph` makes a photograph of the painting.
"""

from street_scenes.light import WEATHERS
from street_scenes.scene import Scene, generate_scene

__all__ = ["WEATHERS", "Scene", "generate_scene"]
