"""A nested dict of figures -> aligned lines for a terminal."""

from collections.abc import Iterator, Mapping


def report(result: Mapping) -> str:
    """{"seen": {"pictures": 300, "top5": 0.4}} gives

    seen
      pictures  300
      top5      0.400
    """
    return "\n".join(_lines(result, 0))


def _lines(result: Mapping, depth: int) -> Iterator[str]:
    width = max((len(str(key)) for key in result), default=0)
    for key, value in result.items():
        if isinstance(value, Mapping):
            yield f"{'  ' * depth}{key}"
            yield from _lines(value, depth + 1)
        else:
            yield f"{'  ' * depth}{str(key):<{width}}  {f'{value:.3f}' if isinstance(value, float) else value}"
