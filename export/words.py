"""Numbers, lists and sentences in messages, and tables for a terminal. Standard library only, Python 3.10 syntax."""

from collections.abc import Collection, Iterable, Sequence


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 image", "2 images", "1,234 images".

    Args:
        number: The number; 0 takes the plural.
        noun: The noun in the singular.
        plural: The noun in the plural. Defaults to the noun with an "s".
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def percent(share: float, digits: int = 2) -> str:
    """Return a share in percent, such as "97.25%"; one below 1 is never rounded up to 100 %.

    Args:
        share: The share.
        digits: Digits behind the point. Defaults to 2.
    """
    most = 1 - 10 ** -(digits + 2)
    return f"{min(share, most) if share < 1 else share:.{digits}%}"


def listed(names: Iterable[object], most: int = 5, separator: str = ", ") -> str:
    """Return the first names of a list and the number of the others: "a, b, c, d, e and 42 more".

    Args:
        names: The names, any number of them.
        most: How many are shown; one more is shown too, because "and 1 more" is as long as a name. Defaults to 5.
        separator: The text between two names. Defaults to ", "; use "; " for sentences.
    """
    texts = [str(name) for name in names]
    if len(texts) <= most + 1:
        return separator.join(texts)
    return f"{separator.join(texts[:most])} and {len(texts) - most:,} more"


def aligned(rows: Iterable[Sequence[str]], right: Collection[int] = (), indent: str = "  ") -> list[str]:
    """Return rows of cells as lines of text with aligned columns.

    Args:
        rows: The header first, which has all columns. The last cell of a shorter row is a remark that takes the rest
            of its line.
        right: Indices of the columns that are aligned on the right, such as numbers. Defaults to none.
        indent: The text before each line. Defaults to two spaces.
    """
    table = [list(row) for row in rows]
    columns = max(map(len, table), default=0)
    remarks = [row.pop() if len(row) < columns else "" for row in table]
    widths = [max(len(row[column]) for row in table if column < len(row)) for column in range(columns)]
    lines = []
    for row, remark in zip(table, remarks):
        cells = [cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row)]
        lines.append((indent + "  ".join([*cells, remark])).rstrip())
    return lines


def sentence(words: str) -> str:
    """Return a remark as a sentence, with a capital letter and a full stop.

    Args:
        words: Such as "a convolution is FP32". A first word that is no plain word, such as the name of a file, keeps
            its case; "" stays "".
    """
    first = words.partition(" ")[0]
    capital = f"{words[:1].upper()}{words[1:]}" if first.rstrip(",;:'").isalpha() else words
    return capital if not words or words.endswith((".", "!", "?")) else f"{capital}."
