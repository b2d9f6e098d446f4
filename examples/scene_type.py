"""An image-level task beside dense ones: does a built-in scene show a room or a street?

polyscene multitask configs/multitask/scenes/pascal.yaml tasks=[segmentation,normals,examples/scene_type.py] \\
    model.kind=mti_net model.pyramid_width=32 out=runs/scenes/scene_type
"""

from polyscene.downstream.multitask.tasks import image_class


def read(root, name):
    """``room_003_c01_l00`` -> ``room``."""
    return name.split("_")[0]


def task():
    """Two classes; every image has a label."""
    return image_class.task("scene_type", "Scene type", ("room", "street"), read)
