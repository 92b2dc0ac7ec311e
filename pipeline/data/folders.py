"""The files in a folder of images, and advice for paths that are not such a folder."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from export.words import count, listed
from pipeline.recipe.messages import ARCHIVES, EXTENSIONS, set_option
from pipeline.recipe.schema import Data

# Files that people and systems put beside images, and that no message needs to mention.
IGNORED_NAMES = frozenset({"thumbs.db", "desktop.ini", "classes.txt", "classes.json"})
NO_CLASS, NO_ENDING = "image in no class folder", "file without an ending"
PLURALS = {NO_CLASS: "images in no class folder", NO_ENDING: "files without an ending"}


def subfolders(folder: Path) -> list[Path]:
    """Return the folders directly in a folder, sorted, without hidden ones."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))


def images_below(folder: Path) -> Iterator[Path]:
    """Return the files that have an image's extension, at any depth."""
    return (
        p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith("._") and p.is_file()
    )


def has_images(folder: Path) -> bool:
    """Return whether a folder has such a file."""
    return next(images_below(folder), None) is not None


def other_files(root: Path, taken: Collection[Path]) -> dict[str, int]:
    """Return how many files of a folder are not taken, by extension, or as images in no class folder."""
    numbers: Counter[str] = Counter()
    for path in root.rglob("*"):
        hidden = any(part.startswith((".", "__MACOSX")) for part in path.relative_to(root).parts)
        if not hidden and path not in taken and path.name.lower() not in IGNORED_NAMES and path.is_file():
            numbers[NO_CLASS if path.suffix.lower() in EXTENSIONS else path.suffix.lower() or NO_ENDING] += 1
    return dict(sorted(numbers.items(), key=lambda pair: (-pair[1], pair[0])))


def kinds_in_words(others: Mapping[str, int]) -> str:
    """Return those files for a sentence: "3 .heic, 2 images in no class folder"."""
    return ", ".join(count(number, kind, PLURALS.get(kind, kind)) for kind, number in others.items())


def why_groups(root: Path, classes: Collection[str]) -> str | None:
    """Return why folders taken for classes seem to be none: all hold the same folders, as 2023/cat and 2024/cat.

    None where they do not.
    """
    inside = [{p.name for p in subfolders(root / name)} for name in classes if (root / name).is_dir()]
    if len(inside) < 2 or len(inside[0]) < 2 or any(names != inside[0] for names in inside):
        return None
    return (
        f"each class folder of {root} ({listed(sorted(classes), most=3)}) holds the folders "
        f"{listed(sorted(inside[0]), most=3)}: if those are the classes, bring each one's images into one folder"
    )


def is_source(source: str, path: Path) -> bool:
    """Return whether a source of images reads the file or folder at a path, judged by its name."""
    if source == "folder":
        return path.is_dir()
    others = {*ARCHIVES, *EXTENSIONS, ".npz", ".csv"} - {f".{source}"}
    is_source = path.is_file() and path.suffix.lower() not in others
    return is_source or (source == "csv" and path.is_dir() and any(path.glob("*.csv")))


def why_no_images(config: Data, root: Path, others: Mapping[str, int]) -> str:
    """Return the error message for a folder without an image in the right place."""
    folders = subfolders(root)
    how = f"whose names match {config.label_pattern!r}" if config.label_pattern else "in a subfolder for each class"
    ignored = f" ({kinds_in_words(others)})" if others else ""
    advice = f"Images end in {', '.join(sorted(EXTENSIONS))}; convert others."
    loose = [path for path in root.iterdir() if path.suffix.lower() in EXTENSIONS and path.is_file()]
    if loose:
        advice = (
            f"{count(len(loose), 'image lies', 'images lie')} directly in it, without a class. If it is one class of "
            f"several: {set_option('data.path', root.parent)}; a class in each name, as cat_001.jpg: "
            "--set data.label_pattern='^([a-z]+)_'; classes in a table: data.source=csv."
        )
    elif any(root.glob("*.csv")):
        advice = "It holds tables, which fit with --set data.source=csv."
    return (
        f"Expected images {how}. Received: {root} with {count(len(folders), 'subfolder')} and no image in "
        f"them{ignored}. {advice}"
    )


def why_one_class(config: Data, classes: Sequence[str]) -> str:
    """Return advice for a source with a single class."""
    if config.source != "folder" or config.path is None or config.label_pattern is not None:
        return "Add images and labels of a second class; with one class there is nothing to train or verify."
    root = Path(config.path)
    inside = [p.name for p in subfolders(root / classes[0]) if has_images(p)] if classes else []
    if len(inside) > 1:
        return (
            f"{root / classes[0]} holds the folders {listed(inside)}: "
            f"if these are the classes, {set_option('data.path', root / classes[0])}"
        )
    return f"{root} needs a folder for each class, and there is one; images of anything else make a second class."
