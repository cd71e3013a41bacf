from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import AmazonMultimodal, _download
from torch_geometric_unlearn.utils import files as file_utils

EDGE_TYPE = ('user', 'interacts', 'item')
FEATURES = {'image': np.ones((4, 3)), 'text': np.ones((4, 2), dtype=np.float16)}
HEADER = 'userID\titemID\tx_label'


def lengths(texts: list[str]) -> np.ndarray:
    return np.array([[len(text), text.count(' ')] for text in texts])


@pytest.fixture
def baby(tmp_path, write_mmrec):
    write_mmrec(tmp_path / 'Baby' / 'raw', 'baby', features=FEATURES)
    return tmp_path


@pytest.fixture
def server(tmp_path, write_snap, serve):
    return serve(write_snap(tmp_path / 'www'))


@pytest.fixture
def from_snap(tmp_path, server):
    return partial(
        AmazonMultimodal,
        tmp_path / 'root',
        'Baby',
        text_encoder=lengths,
        base_url=server.url + '/',
    )


def files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / 'Baby' / 'processed').iterdir())


def test_mmrec(baby):
    dataset = AmazonMultimodal(str(baby), 'bABY', modalities=('text', 'image'))
    assert str(dataset) == "AmazonMultimodal(name='Baby')"
    data = schema.validate(dataset[0])
    assert schema.modalities(data) == ['image', 'text']
    assert data['item'].x_text.shape == (4, 2)
    assert data['item'].x_image.dtype == data['item'].x_text.dtype == torch.float32
    assert data[EDGE_TYPE].edge_index.tolist() == [[0, 1, 1], [0, 1, 0]]
    assert data.val_edge_label_index.tolist() == [[0], [2]]
    assert data.test_edge_label_index.tolist() == [[1], [3]]
    assert list(data[EDGE_TYPE].keys()) == ['edge_index']


def test_columns_in_any_order(tmp_path, write_mmrec):
    write_mmrec(
        tmp_path / 'Baby' / 'raw',
        'baby',
        header='\ufefftimestamp\tx_label\tname\titemID\trating\tuserID\r',
        lines=('1400000007\t0\tann\t1\t4.5\t0\r', '8\t1\tann\t0\t3\t0\r', '\r'),
    )
    data = AmazonMultimodal(tmp_path, 'Baby', modalities=())[0]
    store = data[EDGE_TYPE]
    assert store.edge_index.tolist() == [[0], [1]]
    assert store.rating.tolist() == [4.5]
    assert store.time.tolist() == [1400000007]
    assert store.rating.dtype == torch.float32
    assert store.time.dtype == torch.int64
    assert data.val_edge_label_index.tolist() == [[0], [0]]


@pytest.mark.parametrize('separator', [*'\u2028\u2029\u0085\x1c\x1e\x0b\x0c', '\r'])
def test_separators_inside_a_text(tmp_path, write_mmrec, separator):
    write_mmrec(
        tmp_path / 'Baby' / 'raw',
        'baby',
        header='userID\titemID\tx_label\ttitle\r',
        lines=(f'0\t0\t0\ta{separator}b\r', '0\t1\t1\tc\r', ' \r', ''),
    )
    data = AmazonMultimodal(tmp_path, 'Baby', modalities=())[0]
    assert data[EDGE_TYPE].edge_index.tolist() == [[0], [0]]
    assert data.val_edge_label_index.tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ('lines', 'match'),
    [
        (['0\t1.5\t0'], r"line 4: 'itemID' must be a whole number \(got 1.5\)"),
        (['a7\t1\t0'], r"line 4: 'userID' must be a number \(got 'a7'\)"),
        (['nan\t1\t0'], r"line 4: 'userID' must be a whole number \(got nan\)"),
        (['0\t-1\t0'], r"line 4: 'itemID' must be a 0-based, dense id \(got -1\)"),
        (['0\t1\t3'], r"line 4: 'x_label' must be 0 .train., .* \(got 3\)"),
        (['0\t1\t2', '1\t1\t0'], r'line 5: a pair of user and item must .*\[1, 1\]'),
        (['0\t1'], r"line 4: must have 3 values separated by tabs.* \(got '0\\t1'\)"),
        (['0\t1\t0\t0'], 'line 4: must have 3 values'),
        (['', '0\t1\t0'], 'line 4: must have 3 values'),
        (['0\t2\t'], r"line 4: 'x_label' must be a number \(got ''\)"),
    ],
)
def test_bad_lines(tmp_path, write_mmrec, lines, match):
    lines = ('0\t0\t0', '1\t1\t0', *lines)
    write_mmrec(tmp_path / 'Baby' / 'raw', 'baby', lines=lines)
    with pytest.raises(ValueError, match=r"baby\.inter', " + match):
        AmazonMultimodal(tmp_path, 'Baby', modalities=())
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ('content', 'match'),
    [
        (b'', r"line 1: the header must name userID, itemID, x_label .*got ''"),
        (b'userID,itemID,x_label\n0,0,0\n', 'line 1: the header .* separated by tabs'),
        (b'0\t0\t0\n', 'line 1: the header must name'),
        (b'userID\titemID\titemID\tx_label\n', 'line 1: the header .* once each'),
        (HEADER.encode() + b'\n', 'must hold interactions below its header'),
        (HEADER.encode() + b'\n0\t0\t1\n', 'must hold training interactions'),
        (HEADER.encode() + b'\n0\t\xff\x00\n', 'line 2: must be plain text .*0xff'),
        (b'\x1f\x8b\x08\x00', 'line 1: must be plain text'),
        (
            b'userID\titemID\tx_label\trating\n0\t0\t0\tinf\n',
            r"line 2: 'rating' must be a finite number \(got inf\)",
        ),
        (
            b'userID\titemID\tx_label\trating\n0\t0\t0\t1e39\n',
            r"line 2: 'rating' must be a finite number \(got 1e\+39\)",
        ),
        (
            b'userID\titemID\tx_label\ttimestamp\n0\t0\t0\t1e30\n',
            r"line 2: 'timestamp' must be a whole number \(got 1e\+30\)",
        ),
        (
            b'userID\titemID\tx_label\trating\trating\n0\t0\t0\t1\t2\n',
            'line 1: the header must name .* rating and timestamp at most once',
        ),
        (
            b'userID\titemID\tx_label\ttimestamp\n0\t0\t0\t1.5\n',
            r"line 2: 'timestamp' must be a whole number \(got 1.5\)",
        ),
    ],
)
def test_bad_inter(baby, content, match):
    (baby / 'Baby' / 'raw' / 'baby.inter').write_bytes(content)
    with pytest.raises(ValueError, match=match):
        AmazonMultimodal(baby, 'Baby', modalities=())


@pytest.mark.parametrize(
    ('value', 'match'),
    [
        (np.ones((3, 2)), r"largest 'itemID' of 'baby.inter' .*\[4, F\].*got \[3, 2\]"),
        (np.ones(4), r'expected shape \[4, F\] with F >= 1 \(got \[4\]\)'),
        (np.ones((4, 2), dtype=np.int64), r'must hold float16, .* \(got int64\)'),
        (np.full((4, 2), np.nan), r'text_feat.npy. must be finite.*first: row 0'),
        (np.full((4, 2), 1e300), 'text_feat.npy. must be finite'),
        (np.array([[None]]), r'must be a complete \.npy file'),
    ],
)
def test_bad_features(baby, value, match):
    np.save(baby / 'Baby' / 'raw' / 'text_feat.npy', value)
    with pytest.raises(ValueError, match=match):
        AmazonMultimodal(baby, 'Baby')


@pytest.mark.parametrize('size', [0, 50, 130])
def test_truncated_features(baby, size):
    path = baby / 'Baby' / 'raw' / 'text_feat.npy'
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r'text_feat\.npy. must be a complete \.npy'):
        AmazonMultimodal(baby, 'Baby')


def test_missing_files(baby):
    raw = baby / 'Baby' / 'raw'
    (raw / 'text_feat.npy').unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"'text_feat.npy' must be in the folder '.*raw', but is not there\. "
        r"Put it there, or leave features out .* pass source='snap'",
    ):
        AmazonMultimodal(baby, 'Baby')
    AmazonMultimodal(baby, 'Baby', modalities=('image',))

    (raw / 'baby.inter').rename(raw / 'babies.inter')
    with pytest.raises(
        FileNotFoundError, match=r"'baby.inter' must .* as 'babies.inter'"
    ):
        AmazonMultimodal(baby, 'Baby')
    with pytest.raises(
        FileNotFoundError, match=r"'baby.inter', 'text_feat.npy' must be"
    ):
        AmazonMultimodal(baby, 'Baby', source='mmrec')
    # Once processed, the raw files are not needed.
    AmazonMultimodal(baby, 'Baby', modalities=('image',), source='mmrec')


@pytest.mark.parametrize(
    ('kwargs', 'error', 'match'),
    [
        ({'name': 'Books'}, ValueError, "'name' must be one of .*Baby.*got 'Books'"),
        ({'name': None}, ValueError, "'name' must be one of"),
        ({'modalities': 'text'}, TypeError, r"pass \('text',\)"),
        ({'modalities': ('audio',)}, ValueError, "'modalities' must hold names out of"),
        ({'modalities': ('text', 'text')}, ValueError, 'each at most once'),
        ({'source': 'web'}, ValueError, "'source' must be one of"),
        ({'seed': -1}, ValueError, "'seed' must be an integer"),
        ({'text_channels': 0}, ValueError, "'text_channels' must be at least 1"),
        ({'text_encoder': lambda texts: texts}, ValueError, "'text_encoder' must have"),
    ],
)
def test_bad_arguments(tmp_path, kwargs, error, match):
    with pytest.raises(error, match=match):
        AmazonMultimodal(**{'root': tmp_path, 'name': 'Baby', **kwargs})


def test_snap(from_snap, server, snap, tmp_path, monkeypatch):
    monkeypatch.setattr(_download.time, 'sleep', lambda seconds: None)
    server.cuts = [None, 40, 20_000]  # The later two connections break.
    data = schema.validate(from_snap(seed=3)[0])
    assert data['user'].raw_id == snap.users
    assert data['item'].raw_id == snap.items
    assert data.split_seed == 3
    image = data['item'].x_image
    assert image.shape == (5, 4096)
    assert image[:, 9].tolist() == [0.0, 7.0, 2.0, 3.25, 4.0]
    text = "Baby's blanket no2 Soft Baby Bed 2 Warm and cosy 2"
    assert data['item'].x_text[2].tolist() == [len(text), text.count(' ')]

    # Five interactions per user: three to train, one to each other split.
    store = data[EDGE_TYPE]
    assert store.edge_index[0].bincount().tolist() == 6 * [3]
    assert data.val_edge_label_index[0].sort()[0].tolist() == list(range(6))
    assert data.test_edge_label_index[0].sort()[0].tolist() == list(range(6))
    assert store.time.tolist() == (store.edge_index[1] + 100).tolist()
    assert store.rating.tolist() == (store.edge_index[0] % 5 + 1.0).tolist()
    assert sorted(path.name for path in (tmp_path / 'root/Baby/raw').iterdir()) == [
        'image_features_Baby.b',
        'meta_Baby.json.gz',
        'reviews_Baby_5.json.gz',
    ]


def test_snap_options(from_snap, server, tmp_path):
    base = from_snap(modalities=())[0]
    assert [path for path, _ in server.asked] == [
        '/categoryFiles/reviews_Baby_5.json.gz'
    ]
    other = from_snap(modalities=(), seed=1)[0]
    assert not torch.equal(base[EDGE_TYPE].edge_index, other[EDGE_TYPE].edge_index)
    again = from_snap(modalities=(), force_reload=True)[0]
    assert torch.equal(base[EDGE_TYPE].edge_index, again[EDGE_TYPE].edge_index)

    from_snap(modalities=('text',))
    from_snap(modalities=('text',), text_encoder_name='mine')
    x = from_snap(modalities=('text',), text_encoder='tfidf', text_channels=3)[0]
    assert x['item'].x_text.shape == (5, 3)
    from_snap(modalities=('text',), text_encoder='tfidf', text_channels=2)
    assert len(files(tmp_path / 'root')) == 6
    assert len(server.asked) == 2


def test_encoder_of_the_same_name_with_other_content(from_snap):
    def make(factor):
        def encoder(texts):
            return [[factor * len(text)] for text in texts]

        encoder.__qualname__ = 'encoder'
        return encoder

    for factor in (1.0, 2.0, 1.0):
        x = from_snap(modalities=('text',), text_encoder=make(factor))[0]['item'].x_text
        assert x[2].item() == 50 * factor
    with pytest.raises(TypeError, match=r"'text_encoder.* Or pass text_encoder_name"):
        from_snap(modalities=('text',), text_encoder=Lock().__enter__)


def test_snap_without_5_core(from_snap, snap, write_snap, tmp_path):
    snap.reviews = snap.reviews[:20]
    write_snap(tmp_path / 'www')
    with pytest.raises(ValueError, match=r'must hold a 5-core.* \(got none among 20'):
        from_snap()


def test_snap_without_network(from_snap, server):
    server.status = 404
    with pytest.raises(ConnectionError, match=r'reviews_Baby_5.*put it there by hand'):
        from_snap()


def test_encoder_is_missed_before_the_download(from_snap, server, monkeypatch):
    monkeypatch.setitem(sys.modules, 'sentence_transformers', None)
    with pytest.raises(ImportError, match="needs 'sentence_transformers'"):
        from_snap(text_encoder='all-MiniLM-L6-v2')
    assert server.asked == []


class KeepFirst:
    def __init__(self, num_edges: int) -> None:
        self.num_edges = num_edges

    def __call__(self, data):
        store = data[EDGE_TYPE]
        store.edge_index = store.edge_index[:, : self.num_edges]
        return data

    def __repr__(self) -> str:
        return f'KeepFirst({self.num_edges})'


def test_transforms(baby):
    load = partial(AmazonMultimodal, baby, 'Baby')
    assert load(transform=KeepFirst(1))[0][EDGE_TYPE].edge_index.size(1) == 1
    # A processed file made with another 'pre_transform' is never taken.
    for num_edges in (1, 2, 1):
        data = load(pre_transform=KeepFirst(num_edges))[0]
        assert data[EDGE_TYPE].edge_index.size(1) == num_edges
    assert load()[0][EDGE_TYPE].edge_index.size(1) == 3
    with pytest.raises(ValueError, match='there is no training interaction'):
        load(pre_transform=KeepFirst(0))
    assert len(files(baby)) == 3


@pytest.mark.parametrize('moment', ['os.fsync', 'os.replace'])
def test_killed(baby, moment, run_code):
    code = f"""
import os, signal, torch
from torch_geometric_unlearn.datasets import AmazonMultimodal
def die(*args, **kwargs):
    if hasattr(args[-1], 'write'):
        args[-1].write(b'half')
        args[-1].flush()
    os.kill(os.getpid(), signal.SIGKILL)
{moment} = die
AmazonMultimodal({str(baby)!r}, 'Baby')
"""
    assert run_code(code) == -signal.SIGKILL
    assert len(files(baby)) == 1
    assert files(baby)[0].endswith('.tmp')
    data = AmazonMultimodal(baby, 'Baby')[0]
    assert data[EDGE_TYPE].edge_index.size(1) == 3
    assert len(files(baby)) == 1
    assert files(baby)[0].endswith('.safetensors')


def test_temporary_file_of_running_process(baby):
    processed = baby / 'Baby' / 'processed'
    processed.mkdir()
    host = file_utils.host_name()
    names = [f'a.pt.{host}.{os.getppid()}.tmp', 'a.pt.elsewhere.1.tmp', 'notes.tmp']
    for name in names:
        (processed / name).write_text('')
    os.utime(processed / names[1])
    AmazonMultimodal(baby, 'Baby')
    assert set(names) < set(files(baby))
    os.utime(processed / names[1], (0, 0))  # Another machine's, long ago.
    AmazonMultimodal(baby, 'Baby', force_reload=True)
    assert names[1] not in files(baby)


@pytest.mark.parametrize('size', [0, 700, -20])
def test_truncated_processed_file(baby, size):
    path = Path(AmazonMultimodal(baby, 'Baby').processed_paths[0])
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"' can't be read .*force_reload=True"):
        AmazonMultimodal(baby, 'Baby')
    AmazonMultimodal(baby, 'Baby', force_reload=True)


def test_disk_full(baby):
    resource = pytest.importorskip('resource')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"Cannot write to .*processed'.*another path"
        ):
            AmazonMultimodal(baby, 'Baby')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(baby) == []


def test_no_permission(baby, monkeypatch):
    AmazonMultimodal(baby, 'Baby')

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, 'Permission denied', path)

    monkeypatch.setattr(file_utils.os, 'makedirs', refuse)
    AmazonMultimodal(baby, 'Baby')  # Reading needs no permission to write.
    with pytest.raises(PermissionError, match=r"Cannot write to the folder '.*Baby"):
        AmazonMultimodal(baby, 'Baby', modalities=())


def test_root_is_a_file(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match=r"Cannot write to the folder '.*file/Baby/raw'"):
        AmazonMultimodal(tmp_path / 'file', 'Baby')


BABY = (19_445, 7_050, 118_551, 20_559, 21_682)
SPORTS = (35_598, 18_357, 218_409, 37_899, 40_029)
CLOTHING = (39_387, 23_033, 197_338, 40_150, 41_189)


@pytest.mark.parametrize(
    ('folder', 'sizes', 'distinct_items', 'modalities'),
    [  # Items counted from the files' lines, without this package.
        ('baby', BABY, (7_047, 5_483, 5_549), ('image', 'text')),
        ('baby_draw1', BABY, (7_048, 5_465, 5_560), ()),
        ('sports', SPORTS, (18_352, 13_342, 13_738), ('image', 'text')),
        ('clothing', CLOTHING, (23_020, 16_702, 16_803), ('text',)),
    ],
)
def test_real_data(tmp_path, link_real, folder, sizes, distinct_items, modalities):
    name = folder.partition('_')[0].capitalize()
    link_real(f'amazon_{folder}', tmp_path / name / 'raw')
    data = AmazonMultimodal(tmp_path, name, modalities)[0]
    pairs = (
        data[EDGE_TYPE].edge_index,
        data.val_edge_label_index,
        data.test_edge_label_index,
    )
    found = (data['user'].num_nodes, data['item'].num_nodes)
    assert (*found, *(pair.size(1) for pair in pairs)) == sizes
    counts = tuple(pair[1].unique().numel() for pair in pairs)
    assert counts == distinct_items
    assert schema.modalities(data) == list(modalities)
