"""Where the published archives of each data set put their images."""

from __future__ import annotations

import os
from collections.abc import Sequence

from polyscene.runtime.errors import UserError

# kind -> split -> alternatives; an alternative is the folders that may hold the split together.
_LAYOUTS: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {
    "coco": {split: ((f"{split}2017",),) for split in ("train", "val", "test", "unlabeled")},
    "openimages": {
        "train": (("train",), tuple(f"train_{digit}" for digit in "0123456789abcdef")),
        "validation": (("validation",),),
        "test": (("test",),),
    },
    "bdd100k": {split: ((f"images/100k/{split}",),) for split in ("train", "val", "test")},
    "imagenet": {split: ((split,),) for split in ("train", "val")},
}

KINDS = ("folder", *_LAYOUTS)


def locate_splits(kind: str, root: str, splits: Sequence[str]) -> tuple[str, dict[str, list[str]]]:
    """The folders of a data set's splits, whether ``root`` is the data set's folder or one too high or too low.

    Args:
        kind: one of `KINDS`.
        root: an existing folder, as an absolute path.
        splits: which parts of the data set; `folder` has none.

    Returns:
        The data set's own folder, and the folders of each split relative to it.

    Raises:
        UserError: unknown kind or split; no such layout at ``root``, or more than one.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of images '{kind}'; choose one of {', '.join(KINDS)}")
    if kind == "folder":
        if tuple(splits) != ("train",):
            raise UserError(
                f"splits {list(splits)} mean nothing for kind 'folder'; point the root at the folder itself"
            )
        return root, {"": [""]}
    layout = _LAYOUTS[kind]
    unknown = [split for split in splits if split not in layout]
    if unknown or not splits:
        fault = f"has no split '{unknown[0]}'" if unknown else "needs at least one split"
        raise UserError(f"{kind} {fault}; choose from {', '.join(layout)}")
    wanted = {split: layout[split] for split in dict.fromkeys(splits)}
    found = _find(root, wanted)
    if found is not None:
        return root, found
    elsewhere = {**_too_low(root, wanted), **_too_high(root, wanted)}
    if len(elsewhere) == 1:
        return next(iter(elsewhere.items()))
    looked_for = " and ".join(" or ".join(_shown(folders) for folders in options) for options in wanted.values())
    if elsewhere:
        raise UserError(
            f"'{root}' holds several {kind} data sets ({', '.join(sorted(elsewhere))}); point the root at one of them"
        )
    raise UserError(
        f"'{root}' does not look like {kind}: looked for {looked_for}, found {_entries(root)}; "
        f"point the root at the folder that holds {looked_for}, or use kind 'folder' for any tree of images"
    )


def _find(base: str, wanted: dict[str, tuple[tuple[str, ...], ...]]) -> dict[str, list[str]] | None:
    """The existing folders of each split below ``base``; None if one split has none."""
    found = {}
    for split, options in wanted.items():
        present = [[f for f in folders if os.path.isdir(os.path.join(base, f))] for folders in options]
        present = [folders for folders in present if folders]
        if not present:
            return None
        if len(present) > 1:
            raise UserError(
                f"'{base}' holds '{present[0][0]}' and '{present[1][0]}', which would both be the {split} images; "
                "move one of them away, or list the images in a file"
            )
        found[split] = present[0]
    return found


def _too_low(root: str, wanted: dict[str, tuple[tuple[str, ...], ...]]) -> dict[str, dict[str, list[str]]]:
    """The data set around ``root``, if everything wanted of it lies in ``root``."""
    depth = max(folder.count("/") + 1 for options in wanted.values() for folders in options for folder in folders)
    base = root
    for _ in range(depth):
        base = os.path.dirname(base)
        found = _find(base, wanted)
        if found is not None:
            inside = (os.path.join(base, folder) + "/" for folders in found.values() for folder in folders)
            return {base: found} if all(folder.startswith(root + "/") for folder in inside) else {}
    return {}


def _too_high(root: str, wanted: dict[str, tuple[tuple[str, ...], ...]]) -> dict[str, dict[str, list[str]]]:
    """The data sets one folder below ``root``."""
    try:
        children = sorted(entry.path for entry in os.scandir(root) if entry.is_dir())
    except OSError as error:
        raise UserError(f"cannot read folder '{root}': {error.strerror}; give yourself access to it") from error
    found = {child: _find(child, wanted) for child in children}
    return {child: folders for child, folders in found.items() if folders is not None}


def _shown(folders: Sequence[str]) -> str:
    return f"'{folders[0]}/'" if len(folders) == 1 else f"'{folders[0]}/'..'{folders[-1]}/'"


def _entries(root: str, most: int = 5) -> str:
    names = sorted(name + "/" * os.path.isdir(os.path.join(root, name)) for name in os.listdir(root))
    if not names:
        return "an empty folder"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + more
