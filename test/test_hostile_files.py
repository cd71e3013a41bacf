r"""No file that the package opens runs code, whatever it holds."""

import gzip
import io
import os
import pickle
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from torch_geometric_unlearn.data import from_csv, from_parquet
from torch_geometric_unlearn.datasets import AmazonMultimodal, TikTok
from torch_geometric_unlearn.nn import LightGCN
from torch_geometric_unlearn.report import read_report
from torch_geometric_unlearn.train import fit, load_model
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import PartialRetrain


class Bomb:
    r"""Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def zip_file(bomb):
    out = io.BytesIO()
    torch.save((bomb, None, dict), out)
    return out.getvalue()


def old_file(bomb):
    out = io.BytesIO()
    torch.save((bomb, None, dict), out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def tar_file(bomb):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as tar:
        for name in ('sys_info', 'pickle', 'storages', 'tensors'):
            content = pickle.dumps(bomb)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def array_file(bomb):
    out = io.BytesIO()
    np.save(out, np.array([[bomb]], object), allow_pickle=True)
    return out.getvalue()


def archive_file(bomb):
    out = io.BytesIO()
    np.savez(out, x=np.array([[bomb]], object))
    return out.getvalue()


FORMATS = {
    'pickle': pickle.dumps,
    'old_pickle': lambda bomb: pickle.dumps(bomb, protocol=0),
    'gzip': lambda bomb: gzip.compress(pickle.dumps(bomb)),
    'torch_zip': zip_file,
    'torch_old': old_file,
    'torch_tar': tar_file,
    'numpy': array_file,
    'numpy_zip': archive_file,
}


@pytest.mark.parametrize('name', FORMATS)
def test_the_bombs_are_live(name, tmp_path):
    content = FORMATS[name](Bomb(tmp_path / 'fired'))
    (tmp_path / 'file').write_bytes(content)
    with suppress(TypeError):  # Of what comes after.
        if name.startswith('torch'):
            torch.load(tmp_path / 'file', weights_only=False)
        elif name.startswith('numpy'):
            loaded = np.load(tmp_path / 'file', allow_pickle=True)
            list(loaded['x'] if name == 'numpy_zip' else loaded)
        else:
            kind = 'gzip' if name == 'gzip' else None
            pd.read_pickle(tmp_path / 'file', compression=kind)
    assert (tmp_path / 'fired').exists()


def raw_files(folder, name):
    folder.mkdir(parents=True)
    lines = ['userID\titemID\tx_label', '0\t0\t0', '0\t1\t1', '1\t1\t0']
    (folder / f'{name}.inter').write_text('\n'.join(lines) + '\n')
    for modality in ('image', 'text', 'audio'):
        np.save(folder / f'{modality}_feat.npy', np.ones((2, 3), np.float32))
    return folder


def processed(build):
    def open_file(folder, content):
        raw_files(folder / 'Baby' / 'raw', 'baby')
        raw_files(folder / 'raw', 'tiktok')
        path = Path(build(folder).processed_paths[0])
        path.write_bytes(content)
        return lambda: build(folder)

    return open_file


def raw(file):
    def open_file(folder, content):
        (raw_files(folder / 'Baby' / 'raw', 'baby') / file).write_bytes(content)
        return lambda: AmazonMultimodal(folder, 'Baby')

    return open_file


def snap(file):
    def open_file(folder, content):
        (folder / 'Baby' / 'raw').mkdir(parents=True)
        good = {
            'reviews_Baby_5.json.gz': gzip.compress(
                b''.join(
                    b'{"reviewerID": "u%d", "asin": "i%d", "unixReviewTime": 1, '
                    b'"overall": 5}\n' % (user, item)
                    for user in range(5)
                    for item in range(5)
                )
            ),
            'meta_Baby.json.gz': gzip.compress(b"{'asin': 'i0', 'title': 'x'}\n"),
            'image_features_Baby.b': b''.join(
                b'i%d        ' % item + bytes(4 * 4096) for item in range(5)
            ),
        }
        for name, good_content in good.items():
            path = folder / 'Baby' / 'raw' / name
            path.write_bytes(content if name == file else good_content)
        if file == 'meta_Baby.json.gz':
            path = folder / 'Baby' / 'raw' / file
            path.write_bytes(gzip.compress(content))
        encode = text_lengths
        return lambda: AmazonMultimodal(folder, 'Baby', text_encoder=encode)

    return open_file


def text_lengths(texts):
    return [[len(text)] for text in texts]


def saved(open_path):
    def open_file(folder, content):
        path = folder / 'file.safetensors'
        path.write_bytes(content)
        return lambda: open_path(path)

    return open_file


OPENERS = {
    'amazon_processed': processed(lambda folder: AmazonMultimodal(folder, 'Baby')),
    'tiktok_processed': processed(TikTok),
    'interactions': raw('baby.inter'),
    'features': raw('image_feat.npy'),
    'reviews': snap('reviews_Baby_5.json.gz'),
    'metadata': snap('meta_Baby.json.gz'),
    'images': snap('image_features_Baby.b'),
    'load_model': saved(load_model),
    'csv': saved(from_csv),
    'parquet': saved(from_parquet),
}


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize('opener', OPENERS)
def test_no_file_runs_code(opener, name, tmp_path):
    content = FORMATS[name](Bomb(tmp_path / 'fired'))
    (tmp_path / 'in').mkdir()
    open_it = OPENERS[opener](tmp_path / 'in', content)
    with pytest.raises((ValueError, OSError)) as info:
        open_it()
    assert not (tmp_path / 'fired').exists()
    if opener.endswith('processed'):
        assert 'Pass force_reload=True to build it again' in str(info.value)


@pytest.mark.parametrize('name', FORMATS)
def test_no_checkpoint_runs_code(data, name, tmp_path):
    model = LightGCN.from_data(data, hidden_channels=2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    path = tmp_path / 'report.json'
    path.write_bytes(FORMATS[name](Bomb(tmp_path / 'fired')))
    resume = {'checkpoint': path, 'resume': True}
    for open_it in (
        lambda: load_model(model, path),
        lambda: fit(model, data, num_epochs=1, **resume),
        lambda: PartialRetrain(num_epochs=1, **resume)(model, ForgetUsers([1])(data)),
        lambda: read_report(path),
    ):
        with pytest.raises(ValueError, match=r"'.*report\.json' is no"):
            open_it()
    assert not (tmp_path / 'fired').exists()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_processed_file_of_an_earlier_version_is_not_opened(tmp_path):
    folder = raw_files(tmp_path / 'raw', 'tiktok')
    path = Path(TikTok(tmp_path).processed_paths[0])
    for name in ('data.pt', path.with_suffix('.pt').name, 'pre_transform.pt'):
        path.with_name(name).write_bytes(zip_file(Bomb(tmp_path / 'fired')))
    TikTok(tmp_path)
    TikTok(tmp_path, force_reload=True)
    assert folder.exists()
    assert not (tmp_path / 'fired').exists()
