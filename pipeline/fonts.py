"""Text for pictures: with a font of this machine that has its letters, or, where none has, in other words."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

FIRST = "DejaVu Sans"  # comes with matplotlib
# Families of whole scripts, by a part of their name, in the order in which they are asked. No others are: the last
# resort of a system has a box for every letter, and old fonts of formulas keep their signs where letters belong.
BROAD = (
    *("CJK", "Source Han", "WenQuanYi", "Hiragino", "PingFang", "Heiti", "Malgun", "Nanum", "Yu Gothic", "MS Gothic"),
    *("Microsoft YaHei", "Microsoft JhengHei", "SimHei", "Noto Sans", "Arial Unicode", "Segoe UI", "FreeSans"),
)


def drawable(label: str, instead: str = "") -> tuple[str, list[str]]:
    """What a picture can show of a label, and in which fonts.

    Letters that must be joined or run from right to left (Arabic, Hebrew, the scripts of India) are no matter of a
    font alone: matplotlib places letters one by one, from the left, which nobody can read.

    Args:
        label: from outside: a class or a layer.
        instead: what stands for a label that cannot be drawn; empty: the escapes of its odd letters do.

    Returns:
        The text and the font families, for ``fontfamily`` of matplotlib; the first that has a letter draws it.
    """
    families = [FIRST]
    for letter in dict.fromkeys(label):
        if _has(FIRST, letter) and _stands_alone(letter):
            continue
        found = _family_with(letter) if _stands_alone(letter) else None
        if found is None:
            return instead or _escaped(label), [FIRST]
        if found not in families:
            families.append(found)
    return label, families


def _escaped(label: str) -> str:
    return "".join(
        letter if _stands_alone(letter) and _has(FIRST, letter) else letter.encode("unicode_escape").decode()
        for letter in label
    )


def _stands_alone(letter: str) -> bool:
    """Whether a letter is the same picture wherever it stands in a line from left to right."""
    if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Mc", "Me"):
        return False
    if unicodedata.bidirectional(letter) in ("R", "AL", "AN"):
        return False
    return not any(name in unicodedata.name(letter, "") for name in _joined_scripts())


@cache
def _joined_scripts() -> tuple[str, ...]:
    """Scripts whose letters change with their neighbours, by the words of Unicode's names."""
    return (
        *("DEVANAGARI", "BENGALI", "GURMUKHI", "GUJARATI", "ORIYA", "TAMIL", "TELUGU", "KANNADA", "MALAYALAM"),
        *("SINHALA", "MYANMAR", "KHMER", "TIBETAN", "MONGOLIAN", "VARIATION SELECTOR", "REGIONAL INDICATOR"),
        *("EMOJI MODIFIER", "HANGUL JUNGSEONG", "HANGUL JONGSEONG", "HANGUL CHOSEONG"),
    )


@cache
def _family_with(letter: str) -> str | None:
    return next((family for family in _families() if _has(family, letter)), None)


@cache
def _families() -> Sequence[str]:
    """The broad families that matplotlib finds on this machine."""
    from matplotlib import font_manager

    found = sorted({entry.name for entry in font_manager.fontManager.ttflist})
    return list(dict.fromkeys(name for part in BROAD for name in found if part in name))


@cache
def _has(family: str, letter: str) -> bool:
    return ord(letter) in _letters(family)


@cache
def _letters(family: str) -> frozenset[int]:
    """The letters of the very file that matplotlib takes for a family; none where it cannot be opened."""
    from matplotlib import font_manager

    try:
        properties = font_manager.FontProperties(family=[family])
        path = font_manager.findfont(properties, fallback_to_default=False)
        if not Path(path).is_file():
            return frozenset()
        return frozenset(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):  # a font that FreeType does not take
        return frozenset()
