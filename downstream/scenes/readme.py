"""The README.txt that accompanies a written data set."""

from __future__ import annotations

from collections.abc import Sequence

from .classes import CLASSES
from .layouts import Shot


def readme_text(arguments: dict, shots: Sequence[Sequence[Shot]]) -> str:
    """Description of the folder: what each layout holds, how it is split, and the conventions of every annotation."""
    flat = [shot for room in shots for shot in room]
    train = sum(shot.split == "train" for shot in flat)
    height, width = arguments["size"]
    classes = "\n".join(
        f"  {number:2d} {entry.name:13s} NYUD {entry.nyu:2d}   PASCAL-Context {entry.context:3d}   VOC {entry.voc:2d}"
        for number, entry in enumerate(CLASSES, start=1)
    )
    return f"""PolyScene built-in scenes
=========================
{len(flat)} rendered pictures ({height}x{width}) of {len(shots)} places, seed {arguments["seed"]}. Every third place is
a street, the others are furnished rooms. Written by `polyscene scenes`; the same arguments give the same bytes.
scenes.json lists every picture with its place, split, camera and lighting.

The task: which place is this?
  A place is rendered from several cameras under several lightings. {train} pictures are for training; the other
  {len(flat) - train} (val / test) have a camera position AND a lighting that no training picture of that place has.
  Names: <place>_c<camera>_l<lighting>. Lightings differ in the position, number and colour of lamps (or sun, sky and
  haze), in white balance and in exposure. Places share one pool of colours, patterns and objects.

Layouts (pictures are hard links to the same bytes)
  images/train/<place>/*.jpg, images/val/<place>/*.jpg   a labelled image folder
  VOCdevkit/VOC2007/   JPEGImages, Annotations/*.xml, ImageSets/Main/<split>.txt and <class>_<split>.txt with split =
                       trainval | test; 1 = present, 0 = only difficult objects (under 150 visible pixels), -1 = absent
  NYUD_MT/             rooms only: images/*.jpg, edge/*.png, segmentation/*.mat, normals/*.jpg, depth/*.mat,
                       gt_sets/train.txt, gt_sets/val.txt
  PASCAL_MT/           JPEGImages/*.jpg, pascal-context/trainval/*.mat, human_parts/*.mat, semseg/VOC12/*.png,
                       normals_distill/*.png, sal_distill/*.png, ImageSets/Context/*.txt, ImageSets/Parts/*.txt (JSON:
                       name -> VOC ids of the objects in human_parts)
  contact_sheet.png    some pictures with all their annotations

Conventions
  depth         key `depth`, float32, metres along the optical axis; 0 = nothing there (sky, streets only)
  normals       unit vectors in the camera frame, x right, y forward (into the scene), z up, as in NYUD; visible
                surfaces face the camera; stored as round((n + 1) / 2 * 255), read as 2 * x / 255 - 1; sky is (0, 0, 0)
  segmentation  key `segmentation`, uint8, NYUD-40 ids 1..40, 0 = void
  LabelMap      uint16 PASCAL-Context ids (459 classes)
  semseg        VOC ids 0..20 as a palette PNG; 255 = outlines of VOC objects, and those under 40 pixels
  human_parts   structure `anno` of PASCAL-Part: objects (class, class_ind, mask, parts); persons have parts
  edge          255 where the instance differs from the right or lower neighbour, thinned to one pixel
  sal_distill   255 = salient: the foreground instance with the largest sqrt(area share) * exp(-3 d^2), d = distance of
                its centroid from the image centre in image diagonals, and any other with at least 70% of that score;
                walls, ground, sky, buildings, doors, windows, pictures, curtains and rugs never are

Classes
{classes}
"""
