from __future__ import annotations

import numpy as np
import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import TikTok

EDGE_TYPE = ('user', 'interacts', 'item')


@pytest.fixture
def root(tmp_path, write_mmrec):
    features = {
        'image': np.eye(4, 3, dtype=np.float16),
        'audio': np.arange(8, dtype=np.float64).reshape(4, 2),
    }
    write_mmrec(tmp_path / 'raw', 'tiktok', features=features)
    return tmp_path


def test_tiktok(root):
    dataset = TikTok(str(root))
    assert str(dataset) == 'TikTok()'
    assert len(dataset) == 1
    data = schema.validate(dataset[0])
    assert data['user'].num_nodes == 3
    assert data['item'].num_nodes == 4
    assert schema.modalities(data) == ['image', 'audio']
    assert data['item'].x_image.dtype == torch.float32
    assert data['item'].x_audio.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert data[EDGE_TYPE].edge_index.tolist() == [[0, 1, 1], [0, 1, 0]]
    assert data.val_edge_label_index.tolist() == [[0], [2]]
    # The test interaction of user 2, who has no training interaction, is dropped.
    assert data.test_edge_label_index.tolist() == [[1], [3]]


def test_modalities(root):
    data = TikTok(root, modalities=['audio'])[0]
    assert schema.modalities(data) == ['audio']
    assert schema.modalities(TikTok(root, modalities=())[0]) == []
    assert len(list((root / 'processed').iterdir())) == 2
    with pytest.raises(
        FileNotFoundError, match=r"'text_feat.npy' must be in the folder"
    ):
        TikTok(root, modalities=('text',))
    with pytest.raises(
        ValueError, match=r"'modalities' must hold names out of .*video"
    ):
        TikTok(root, modalities=('video',))


def test_nothing_there(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"'tiktok.inter', 'image_feat.npy', 'audio_feat.npy' must be in the "
        r"folder '.*raw', but are not there. Put them there, or .* no public address",
    ):
        TikTok(str(tmp_path))
    assert (tmp_path / 'raw').is_dir()


def test_real_data(tmp_path, link_real):
    link_real('tiktok', tmp_path / 'raw')
    data = TikTok(tmp_path)[0]
    assert (data['user'].num_nodes, data['item'].num_nodes) == (9_308, 6_710)
    assert data[EDGE_TYPE].edge_index.size(1) == 59_541
    assert data.val_edge_label_index.size(1) == 3_051 - 5
    assert data.test_edge_label_index.size(1) == 6_130 - 5
    assert data['item'].x_image.shape == data['item'].x_audio.shape == (6_710, 128)
