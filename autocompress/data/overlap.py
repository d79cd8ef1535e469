"""Which texts contain another text verbatim: what keeps a train text from giving a validation text away.

To compare each text of train with each of validation takes 90 million steps for the sentences of SST-2. Instead,
all windows of the haystacks are hashed at once (Karp and Rabin 1987, modulo 2**64), for each length that is the
greatest power of two in some needle; texts are compared only where the hash of a needle's beginning agrees.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 2**64)
_CHUNK = 1_000_000  # characters hashed at once, in about 50 MB

Hashes = NDArray[np.uint64]
Hit = tuple[list[int], int, int]  # needles that begin alike; haystack and offset where they may stand


def overlapping(texts: Sequence[str], others: Sequence[str]) -> NDArray[np.bool_]:
    """(len(texts),): whether a text contains one of ``others`` or is contained in one.

    Verbatim, case-sensitive, after white space at both ends is removed; an empty text is contained in any.
    """
    texts, others = [text.strip() for text in texts], [text.strip() for text in others]
    found = _contained(texts, others) | _containing(texts, others)
    return np.isin(np.arange(len(texts)), list(found))


def _contained(needles: Sequence[str], haystacks: Sequence[str]) -> set[int]:
    """Positions of the needles that stand in some haystack."""
    found = {number for number, needle in enumerate(needles) if haystacks and not needle}
    for group, haystack, offset in _hits(needles, haystacks):
        text = haystacks[haystack]
        found.update(number for number in group if number not in found and text.startswith(needles[number], offset))
    return found


def _containing(haystacks: Sequence[str], needles: Sequence[str]) -> set[int]:
    """Positions of the haystacks in which some needle stands."""
    found = set(range(len(haystacks))) if "" in needles else set()
    for group, haystack, offset in _hits(needles, haystacks):
        text = haystacks[haystack]
        if haystack not in found and any(text.startswith(needles[number], offset) for number in group):
            found.add(haystack)
    return found


def _hits(needles: Sequence[str], haystacks: Sequence[str]) -> Iterator[Hit]:
    """Where a needle may stand, and no place is left out where one does; an empty needle has no hit."""
    tables = list(_beginnings(needles))
    for first, chunk in _chunks(haystacks):
        starts = np.cumsum([0, *map(len, chunk)])
        sums = _sums("".join(chunk))
        for length, hashes, groups in tables:
            key = hashes.get_indexer(pd.Index(_windows(sums, length)))
            position = np.flatnonzero(key >= 0)
            text = np.searchsorted(starts, position, side="right") - 1
            hits = zip(key[position].tolist(), text.tolist(), (position - starts[text]).tolist(), strict=True)
            yield from ((groups[k], first + haystack, offset) for k, haystack, offset in hits)


def _beginnings(needles: Sequence[str]) -> Iterator[tuple[int, pd.Index, list[list[int]]]]:
    """For each length of a beginning: its length, the hashes, and the needles that begin with each."""
    lengths: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, needle in enumerate(needles):
        if needle:
            length = 1 << (len(needle).bit_length() - 1)
            lengths[length][needle[:length]].append(number)
    for length, beginnings in lengths.items():
        hashes = _codes("".join(beginnings)).reshape(-1, length) @ _powers(_BASE, length)
        groups: dict[int, list[int]] = defaultdict(list)  # beginnings may share a hash
        for key, numbers in zip(hashes.tolist(), beginnings.values(), strict=True):
            groups[key] += numbers
        yield length, pd.Index(np.array(list(groups), dtype=np.uint64)), list(groups.values())


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(position of the first, texts) of about ``_CHUNK`` characters each."""
    first, chunk, size = 0, list[str](), 0
    for number, text in enumerate(texts):
        chunk.append(text)
        size += len(text)
        if size >= _CHUNK or number == len(texts) - 1:
            yield first, chunk
            first, chunk, size = number + 1, [], 0


def _codes(text: str) -> Hashes:
    """Code points, from 1 on, so that no character leaves a hash as it is."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64) + np.uint64(1)


def _powers(base: int, count: int) -> Hashes:
    """1, base, base**2, ... modulo 2**64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _sums(text: str) -> Hashes:
    """(n + 1,): sums of code * base**position over the first 0, 1, ... n characters."""
    return np.concatenate(
        [np.zeros(1, np.uint64), np.cumsum(_codes(text) * _powers(_BASE, len(text)), dtype=np.uint64)]
    )


def _windows(sums: Hashes, length: int) -> Hashes:
    """Hash of each window of ``length`` characters: sum of code * base**(position in the window)."""
    count = max(0, len(sums) - length)
    return (sums[length:] - sums[:count]) * _powers(_INVERSE, count)
