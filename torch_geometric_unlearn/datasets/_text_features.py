r"""Encoders of item texts: a sentence encoder, TF-IDF, or the caller's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_geometric_unlearn.utils.digest import content_digest
from torch_geometric_unlearn.utils.optional import import_optional

TextEncoder = str | Callable[[list[str]], Any]


def encoder_name(encoder: TextEncoder, name: str | None = None) -> str:
    r"""Returns a name of :obj:`encoder` that is the same in every run.

    Raises:
        TypeError: If :obj:`encoder` is neither a string nor callable.
        ValueError: If a callable has no name of its own and :obj:`name` is missing,
            or :obj:`name` is given for a string.
    """
    if isinstance(encoder, str) and encoder:
        if name is not None:
            raise ValueError(
                f"'text_encoder_name' must be None if 'text_encoder' is a string (got "
                f"'{name}'). It names a callable encoder."
            )
        return encoder
    if not callable(encoder):
        raise TypeError(
            f"'text_encoder' must be 'tfidf', the name or path of a "
            f'sentence-transformers model, or a callable from a list of strings to an '
            f'array of shape [num_items, F] (got {encoder!r})'
        )
    if name is not None:
        return name
    own = getattr(encoder, '__qualname__', '<')
    if own.endswith('>'):
        raise ValueError(
            f"'text_encoder' must have a name, which tells its processed files from "
            f'others (got {encoder!r}). Pass it as text_encoder_name, or use a '
            f'function defined with def.'
        )
    return f'{encoder.__module__}.{own}'


def encoder_digest(encoder: TextEncoder) -> str:
    r"""Returns a digest of all that a callable consists of, code and variables.

    Raises:
        TypeError: If it holds something without content to compare.
    """
    try:
        return content_digest(encoder, 'text_encoder')
    except TypeError as error:
        raise TypeError(f'{error} Or pass text_encoder_name.') from error


def check_installed(encoder: TextEncoder) -> None:
    r"""Raises an :class:`ImportError` if the package of :obj:`encoder` is missing."""
    if not isinstance(encoder, str):
        return
    package = 'sklearn' if encoder == 'tfidf' else 'sentence_transformers'
    instead = ", pass another encoder, or leave the text out with modalities=('image',)"
    import_optional(package, f"text_encoder='{encoder}'", 'text', instead)


def encode_texts(
    texts: list[str],
    encoder: TextEncoder,
    channels: int,
    log: bool = False,
) -> Tensor:
    r"""Encodes texts into float32 features :obj:`[len(texts), F]`.

    Args:
        texts (list[str]): The texts.
        encoder (str or callable): :obj:`'tfidf'`, the name or path of a
            sentence-transformers model, or a callable.
        channels (int): Number of columns that :obj:`'tfidf'` gives.
        log (bool, optional): Whether a sentence encoder shows its progress.
            (default: :obj:`False`)

    Raises:
        ImportError: If the package of the encoder is missing.
        ValueError: If the model can't be loaded, the result has the wrong shape, or
            the texts are too few for :obj:`channels`.
    """
    check_installed(encoder)
    if encoder == 'tfidf':
        out: Any = _tfidf(texts, channels)
    elif isinstance(encoder, str):
        model = _sentence_transformer(encoder)
        out = model.encode(texts, convert_to_numpy=True, show_progress_bar=log)
    else:
        out = encoder(texts)
    x = out.detach().cpu() if isinstance(out, Tensor) else torch.from_numpy(_array(out))
    if x.dim() != 2 or x.size(0) != len(texts) or x.size(1) == 0:
        raise ValueError(
            f"'text_encoder' must return one row per text: expected shape "
            f'[{len(texts)}, F] with F >= 1 (got {list(x.shape)})'
        )
    return x.to(torch.float32).contiguous()


def _sentence_transformer(name: str) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"text_encoder='{name}' can't be loaded as a sentence-transformers model "
            f'({error}). Without network, pass the path of a folder that holds one.'
        ) from error


def _array(out: Any) -> np.ndarray:
    try:
        return np.asarray(out, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"'text_encoder' must return an array of numbers of shape [num_items, F] "
            f'(got {type(out).__name__}: {error})'
        ) from error


def _tfidf(texts: list[str], channels: int) -> np.ndarray:
    r"""Returns unit-length TF-IDF vectors, reduced by a truncated SVD."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    try:
        terms = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    except ValueError as error:  # No term at all.
        raise ValueError(
            f"text_encoder='tfidf' must find words in the texts of the items (got: "
            f'{error}). Use a sentence encoder instead.'
        ) from error
    # Beyond the rank, the columns would be zeros or noise.
    limit = min(terms.shape)
    if channels > limit:
        raise ValueError(
            f"'text_channels' must be at most the number of items and of distinct "
            f"words with text_encoder='tfidf', here {limit} (got {channels}). Pass a "
            f'smaller text_channels.'
        )
    svd = TruncatedSVD(channels, random_state=0)  # Fixed: the seed is the split's.
    return normalize(svd.fit_transform(terms))
