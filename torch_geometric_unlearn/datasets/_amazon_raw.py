r"""Readers of the raw files of the Amazon product data (2014) of SNAP and UCSD."""

from __future__ import annotations

import ast
import codecs
import gzip
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

IMAGE_CHANNELS = 4096
_IMAGE_RECORD = np.dtype([('asin', 'S10'), ('x', '<f4', (IMAGE_CHANNELS,))])
IMAGE_RECORD_BYTES = _IMAGE_RECORD.itemsize
_IMAGE_BLOCK = 512
_LARGEST = float(np.finfo(np.float32).max)
_ASIN = re.compile(rb"\s*\{\s*'asin':\s*'([^'\\]+)'")


@dataclass
class Reviews:
    r"""Reviews, one entry per pair of user and item, in the order of the file.

    Args:
        user (numpy.ndarray): Positions in :obj:`user_ids`, int64 :obj:`[N]`.
        item (numpy.ndarray): Positions in :obj:`item_ids`, int64 :obj:`[N]`.
        rating (numpy.ndarray): Stars, float32 :obj:`[N]` (NaN if missing).
        time (numpy.ndarray): Unix time in seconds, int64 :obj:`[N]`.
        user_ids (list[str]): Raw user ids, by first appearance.
        item_ids (list[str]): Raw item ids, by first appearance.
    """

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    time: np.ndarray
    user_ids: list[str]
    item_ids: list[str]

    def select(self, mask: np.ndarray) -> Reviews:
        r"""Returns the marked reviews, with ids numbered anew by first appearance."""
        user, user_ids = _number_anew(self.user[mask], self.user_ids)
        item, item_ids = _number_anew(self.item[mask], self.item_ids)
        rating, time = self.rating[mask], self.time[mask]
        return Reviews(user, item, rating, time, user_ids, item_ids)


def read_reviews(path: str) -> Reviews:
    r"""Reads :obj:`reviews_<category>_5.json.gz`.

    Reviews without user, item or time are dropped; a rating may be missing, but
    neither time nor rating may be NaN or out of range. If a user reviewed an item more
    than once, the first review in the file is kept, as the data contract asks for
    unique pairs (this includes exact duplicates of user, item and time).

    Raises:
        ValueError: If the file is damaged; names the line.
    """
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    pairs: list[tuple[int, int]] = []
    ratings: list[float] = []
    times: list[int] = []
    for number, line in _read_lines(path):
        try:
            review = _REVIEW.decode(line.decode('utf-8'))
            user, item = review.get('reviewerID'), review.get('asin')
            time, rating = review.get('unixReviewTime'), review.get('overall')
            if any(value in (None, '') for value in (user, item, time)):
                continue
            user, item = _to_id(user), _to_id(item)
            time = _to_time(time)
            rating = math.nan if rating is None else _to_rating(rating)
        except (
            ValueError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise ValueError(
                f"'{path}', line {number}: must be a review in JSON with 'reviewerID', "
                f"'asin', 'unixReviewTime' and 'overall' (got {_start(line)}: "
                f'{error}). The file is damaged or of another kind: download it again.'
            ) from error
        pair = (
            users.setdefault(user, len(users)),
            items.setdefault(item, len(items)),
        )
        if pair not in seen:
            seen.add(pair)
            pairs.append(pair)
            ratings.append(rating)
            times.append(time)
    if not pairs:
        raise ValueError(
            f"'{path}' must hold reviews with user, item and time (got none). The "
            f'file is empty or of another kind: download it again.'
        )
    user_item = np.array(pairs, dtype=np.int64)
    return Reviews(
        user=user_item[:, 0],
        item=user_item[:, 1],
        rating=np.array(ratings, dtype=np.float32),
        time=np.array(times, dtype=np.int64),
        user_ids=list(users),
        item_ids=list(items),
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key '{twice}' occurs twice")
    return out


# Texts may hold control characters, as shops export them.
_REVIEW = json.JSONDecoder(strict=False, object_pairs_hook=_unique_keys)


def _to_id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f'an id must be a string or an integer, not {value!r}')
    return str(value)


def _to_time(value: Any) -> int:
    time = int(value)
    whole = isinstance(value, str) or value == time
    if isinstance(value, bool) or not whole or not -(2**63) <= time < 2**63:
        raise ValueError(f"'unixReviewTime' must be a whole number, not {value!r}")
    return time


def _to_rating(value: Any) -> float:
    rating = float(value)
    if isinstance(value, bool) or not abs(rating) <= _LARGEST:
        raise ValueError(f"'overall' must be a finite number or null, not {value!r}")
    return rating


def k_core(user: np.ndarray, item: np.ndarray, k: int = 5) -> np.ndarray:
    r"""Marks the interactions of the :obj:`k`-core: the largest part in which every
    user and every item has at least :obj:`k` interactions.

    Args:
        user (numpy.ndarray): User of every interaction, int64 :obj:`[N]`.
        item (numpy.ndarray): Item of every interaction, int64 :obj:`[N]`.
        k (int, optional): Least number of interactions. (default: :obj:`5`)

    Returns:
        numpy.ndarray: bool :obj:`[N]`.
    """
    keep = np.ones(len(user), dtype=bool)
    while keep.any():
        enough_users = np.bincount(user[keep]) >= k
        enough_items = np.bincount(item[keep]) >= k
        inside = enough_users[user[keep]] & enough_items[item[keep]]
        if inside.all():
            break
        keep[keep] = inside
    return keep


def read_sentences(path: str, item_ids: list[str]) -> list[str]:
    r"""Reads :obj:`meta_<category>.json.gz` into one sentence per item, in the order
    of :obj:`item_ids` (see :func:`to_sentence`).

    An item without metadata counts as one whose fields are all missing. Of several
    entries of an item the first one is kept.

    Raises:
        ValueError: If the file is damaged; names the line.
    """
    place = {item: i for i, item in enumerate(item_ids)}
    sentences: list[str | None] = [None] * len(item_ids)
    for number, line in _read_lines(path):
        # Most products are not in the item map: spare the costly parsing.
        match = _ASIN.match(line)
        if match and match[1].decode('utf-8', 'replace') not in place:
            continue
        try:
            entry = ast.literal_eval(line.decode('utf-8').strip())
            index = place.get(entry.get('asin'))
            if index is not None and sentences[index] is None:
                sentences[index] = to_sentence(entry)
        except (
            ValueError,
            SyntaxError,
            TypeError,
            AttributeError,
            LookupError,
            MemoryError,
            RecursionError,
        ) as error:
            raise ValueError(
                f"'{path}', line {number}: must be a Python dictionary with 'asin' and "
                f"the texts 'title', 'brand', 'categories' and 'description' (got "
                f'{_start(line)}: {error}). The file is damaged or of another kind: '
                f'download it again.'
            ) from error
    return [to_sentence({}) if text is None else text for text in sentences]


def to_sentence(entry: dict[str, Any]) -> str:
    r"""Joins title, brand, the first category path and the description of an item.

    Each is followed by a space, except for the description. Missing fields become a
    single space, and newlines are replaced by spaces.
    """
    title, brand, description = (
        ' ' if entry.get(key) is None else str(entry[key])
        for key in ('title', 'brand', 'description')
    )
    paths = entry.get('categories') or [[]]
    categories = ''.join(f'{category} ' for category in paths[0])
    return f'{title} {brand} {categories}{description}'.replace('\n', ' ')


def read_image_features(path: str, item_ids: list[str]) -> np.ndarray:
    r"""Reads the vectors of some items from :obj:`image_features_<category>.b`.

    The file is read in blocks, so that only the vectors of :obj:`item_ids` are in
    memory. If an item occurs several times, its last vector is kept; items without
    one get the mean of the found ones.

    Returns:
        numpy.ndarray: float32 :obj:`[len(item_ids), 4096]`.

    Raises:
        ValueError: If the file is cut off, or holds none of the items.
    """
    place = {item.encode(): i for i, item in enumerate(item_ids)}
    x = np.zeros((len(item_ids), IMAGE_CHANNELS), dtype=np.float32)
    found = np.zeros(len(item_ids), dtype=bool)
    num_records = 0
    with open(path, 'rb') as file:
        while content := file.read(_IMAGE_BLOCK * IMAGE_RECORD_BYTES):
            num_full, rest = divmod(len(content), IMAGE_RECORD_BYTES)
            num_records += num_full
            if rest != 0:
                raise ValueError(
                    f"'{path}' must consist of records of {IMAGE_RECORD_BYTES} bytes, "
                    f'10 of the item id and {IMAGE_CHANNELS} float32 values (got '
                    f'{rest} bytes after record {num_records}). The file was cut off: '
                    f'delete it to download it again.'
                )
            block = np.frombuffer(content, dtype=_IMAGE_RECORD)
            # One by one, so that the last of equal items wins.
            for row, asin in enumerate(block['asin'].tolist()):
                index = place.get(asin)
                if index is not None:
                    x[index] = block['x'][row]
                    found[index] = True
    if not found.any():
        raise ValueError(
            f"'{path}' must hold image features of the {len(item_ids)} items (got none "
            f'among {num_records} records). The file belongs to another category.'
        )
    mean = x.sum(axis=0, dtype=np.float64) / found.sum()
    x[~found] = mean.astype(np.float32)
    return x


def _number_anew(codes: np.ndarray, ids: list[str]) -> tuple[np.ndarray, list[str]]:
    unique, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = first.argsort()
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[inverse.reshape(-1)], [ids[code] for code in unique[order]]


def _read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    r"""Yields line number and content of every line that is not empty."""
    number = 0
    try:
        with gzip.open(path, 'rb') as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"'{path}', after line {number}: must be a complete gzip file (got: "
            f'{error}). Delete it to download it again.'
        ) from error


def _start(line: bytes) -> str:
    return repr(line[:60].decode('utf-8', 'replace').strip())
