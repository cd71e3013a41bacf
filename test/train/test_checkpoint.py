import pytest
import torch
from safetensors.torch import save_file

from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.train import load_model, save_model
from torch_geometric_unlearn.train.checkpoint import fingerprint
from torch_geometric_unlearn.transforms import DropForgotten, ForgetUsers


def test_round_trip(data, trained, tmp_path):
    path = tmp_path / 'folder' / 'model.safetensors'
    save_model(trained, path, {'epoch': 28, 'note': 'ü'})
    model = MGCN.from_data(data, hidden_channels=16)
    assert load_model(model, path) == {'epoch': 28, 'note': 'ü'}
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])
    assert [p.name for p in path.parent.iterdir()] == ['model.safetensors']


def test_checkpoint_of_another_model(data, trained, tmp_path):
    path = tmp_path / 'model.safetensors'
    save_model(trained, path)
    model = MGCN.from_data(data, hidden_channels=8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    message = r"another model: .*'attention_hidden.bias' is \[16\] in the file"
    with pytest.raises(ValueError, match=message):
        load_model(model, path)
    with pytest.raises(ValueError, match=r"a 'MGCN' with .* the model is a 'Linear'"):
        load_model(torch.nn.Linear(2, 2), path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_damaged_files(trained, tmp_path):
    path = tmp_path / 'model.safetensors'
    with pytest.raises(FileNotFoundError, match=r'There is no checkpoint'):
        load_model(trained, path)
    save_model(trained, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r'is no complete safetensors file'):
        load_model(trained, path)
    save_file({'x': torch.ones(1)}, str(path))
    with pytest.raises(ValueError, match=r'but not one that'):
        load_model(trained, path)


def test_unwritable_folder_leaves_nothing(trained, tmp_path):
    blocker = tmp_path / 'file'
    blocker.write_text('')
    with pytest.raises(OSError, match=r'Cannot write to the folder'):
        save_model(trained, blocker / 'model.safetensors')
    assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_fingerprint_ignores_order_only(data):
    store = data['user', 'interacts', 'item']
    first = fingerprint(data)
    store.edge_index = store.edge_index.flip(1)
    assert fingerprint(data) == first
    marked = ForgetUsers([3])(data)
    assert fingerprint(marked) == fingerprint(DropForgotten()(marked)) != first
