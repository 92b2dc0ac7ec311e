"""Numbers, lists and sentences in messages, and tables for a terminal. Standard library only.

Numbers and lists in sentences, and tables for a terminal. Standard library only, Python 3.10 syntax.

Numbers, lists, tables and sentences for people; the first three are those of ``export``.
"""

from collections.abc import Collection, Iterable, Sequence


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with what it counts: "1 image", "2 images", "1,234 images".

    Args:
        number: how many; zero is plural, as in "0 images".
        noun: for exactly one.
        plural: for any other number, where it is not the noun with an "s".
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def listed(names: Iterable[object], most: int = 5, separator: str = ", ") -> str:
    """Names in a row, as many as a person reads, and how many there are besides: "a, b, c, d, e and 42 more".

    Args:
        names: of any number.
        most: so many are named; one more is named too, because "and 1 more" is as long as a name.
        separator: stands between them; "; " where they are sentences.
    """
    every = [str(name) for name in names]
    if len(every) <= most + 1:
        return separator.join(every)
    return f"{separator.join(every[:most])} and {len(every) - most:,} more"


def aligned(rows: Iterable[Sequence[str]], right: Collection[int] = (), indent: str = "  ") -> list[str]:
    """Lay out rows of cells as lines of text, in columns.

    Args:
        rows: the head first, which has all columns. The last cell of a shorter row is a remark that takes the rest of
            its line.
        right: columns that end alike, as numbers do; the others begin alike.
        indent: before each line.
    """
    every = [list(row) for row in rows]
    columns = max(map(len, every), default=0)
    remarks = [row.pop() if len(row) < columns else "" for row in every]
    widths = [max(len(row[column]) for row in every if column < len(row)) for column in range(columns)]
    lines = []
    for row, remark in zip(every, remarks):
        cells = [cell.rjust(widths[at]) if at in right else cell.ljust(widths[at]) for at, cell in enumerate(row)]
        lines.append((indent + "  ".join([*cells, remark])).rstrip())
    return lines


__all__ = ["aligned", "count", "listed", "sentence"]


def sentence(words: str) -> str:
    """A remark as a sentence: with a capital, unless it begins with the name of a file or the like, and a full stop.

    Args:
        words: such as "a convolution is FP32"; "" stays "".
    """
    first = words.partition(" ")[0]
    capital = f"{words[:1].upper()}{words[1:]}" if first.rstrip(",;:'").isalpha() else words
    return capital if not words or words.endswith((".", "!", "?")) else f"{capital}."
