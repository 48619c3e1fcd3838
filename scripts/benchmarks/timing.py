"""Alternatives timed in turn, so that a machine that is slow for a while is slow for all."""

import statistics
from collections.abc import Callable, Mapping

Seconds = dict[str, list[float]]


def in_turn(timed: Mapping[str, Callable[[], float]], repeats: int) -> tuple[Seconds, dict[str, str]]:
    """Seconds of each alternative, a value for each round, after one that doesn't count; and what failed, and why."""
    seconds: Seconds = {name: [] for name in timed}
    failed: dict[str, str] = {}
    for turn in range(repeats + 1):
        for name, measure in timed.items():
            if name in failed:
                continue
            try:
                taken = measure()
            except Exception as error:  # a peer's failure is a result
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            if turn:
                seconds[name].append(taken)
    return {name: values for name, values in seconds.items() if name not in failed}, failed


def ratio(slower: list[float], faster: list[float]) -> float:
    """How many times as fast the second is: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))
