import json
import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch_geometric.nn import LightGCN as PyGLightGCN

from torch_geometric_unlearn.data import from_frame, schema
from torch_geometric_unlearn.nn import MGCN, MIGGT, LightGCN, RecommenderAdapter
from torch_geometric_unlearn.nn.models import CertifiedHead, EmbeddingTable
from torch_geometric_unlearn.train import load_model, save_model
from torch_geometric_unlearn.train.checkpoint import fingerprint
from torch_geometric_unlearn.transforms import DropForgotten, ForgetUsers
from torch_geometric_unlearn.utils.tensor_file import load_tensors, save_tensors


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


def adapter(data, **kwargs):
    sizes = data['user'].num_nodes, data['item'].num_nodes
    return RecommenderAdapter(PyGLightGCN(sum(sizes), 4, **kwargs), *sizes)


class Other(MGCN):
    pass


SMALL = {'hidden_channels': 4}
SAME_SHAPES = {
    'mgcn_layers': (MGCN, {'num_layers': 1}),
    'mgcn_neighbors': (MGCN, {'num_neighbors': 3}),
    'mgcn_weight': (MGCN, {'contrastive_weight': 0.5}),
    'mgcn_features': (MGCN, {'train_features': False}),
    'light_gcn_layers': (LightGCN, {'num_layers': 3}),
    'mig_gt_hops': (MIGGT, {'num_hops': {'id': 4, 'text': 2, 'image': 2}}),
    'mig_gt_alpha': (MIGGT, {'alpha': 0.2}),
    'mig_gt_beta': (MIGGT, {'beta': 0.8}),
    'mig_gt_mix': (MIGGT, {'mix': 0.2}),
    'mig_gt_dropout': (MIGGT, {'edge_dropout': 0.0}),
    'mig_gt_hidden_dropout': (MIGGT, {'hidden_dropout': 0.0}),
    'mig_gt_samples': (MIGGT, {'sample_seed': 7}),
    'mig_gt_transformer': (MIGGT, {'use_transformer': False}),
}


@pytest.mark.parametrize('case', SAME_SHAPES)
def test_other_arguments_of_the_same_shapes(data, tmp_path, case):
    cls, kwargs = SAME_SHAPES[case]
    path = tmp_path / 'model.safetensors'
    save_model(cls.from_data(data, **SMALL), path)
    model = cls.from_data(data, **SMALL, **kwargs)
    own = cls.from_data(data, **SMALL).state_dict()
    assert {k: v.shape for k, v in own.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (name,) = kwargs
    with pytest.raises(ValueError, match=rf"another model: .*; '{name}' is .* in the "):
        load_model(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    load_model(cls.from_data(data, **SMALL), path)


def test_modules_inside_are_compared(data, tmp_path):
    path = tmp_path / 'model.safetensors'
    alpha = torch.ones(3) / 3  # Gives other numbers of layers the same shapes.
    save_model(adapter(data, num_layers=2, alpha=alpha), path)
    load_model(adapter(data, num_layers=2, alpha=alpha), path)
    other = adapter(data, num_layers=2, alpha=alpha)
    other.module.num_layers = 1
    with pytest.raises(ValueError, match=r"'num_layers' of 'module' is 2 in the file"):
        load_model(other, path)
    other = adapter(data, num_layers=2, alpha=alpha)
    other.weight_decay = 1.0
    with pytest.raises(ValueError, match=r"'weight_decay' is 0.0 in the file and 1.0"):
        load_model(other, path)
    other = adapter(data, num_layers=2, alpha=alpha)
    other.module.drop = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"the module 'module.drop' is missing in the"):
        load_model(other, path)
    foreign = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1))
    save_model(foreign, path)
    load_model(foreign, path)
    foreign[1].p = 0.2
    with pytest.raises(ValueError, match=r"'p' of '1' is 0.1 in the file and 0.2 in"):
        load_model(foreign, path)


def test_a_class_of_the_same_name(data, tmp_path):
    path = tmp_path / 'model.safetensors'
    save_model(Other.from_data(data, **SMALL), path)
    load_model(Other.from_data(data, **SMALL), path)
    twin = type('Other', (MGCN,), {'__module__': 'elsewhere', '__qualname__': 'Other'})
    with pytest.raises(ValueError, match='checkpoint of another model'):
        load_model(twin.from_data(data, **SMALL), path)
    # The same class, once as part of a script, once imported.
    twin.__module__ = '__main__'
    load_model(twin.from_data(data, **SMALL), path)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_data_types(data, tmp_path, dtype):
    path = tmp_path / 'model.safetensors'
    model = LightGCN.from_data(data, **SMALL)
    save_model(LightGCN.from_data(data, **SMALL).to(dtype), path)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"' is {dtype} in the file and torch.fl"):
        load_model(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    load_model(model.to(dtype), path)
    save_model(LightGCN.from_data(data, **SMALL), path)
    with pytest.raises(ValueError, match=rf"torch.float32 in the file and {dtype} in"):
        load_model(model, path)


BUILT = {
    'mgcn': lambda data: MGCN.from_data(data, num_layers=1, **SMALL),
    'frozen': lambda data: MGCN.from_data(data, train_features=False, **SMALL),
    'half': lambda data: MGCN.from_data(data, **SMALL).half(),
    'light_gcn': lambda data: LightGCN.from_data(data, num_layers=3, **SMALL),
    'mig_gt': lambda data: MIGGT.from_data(
        data,
        num_hops=1,
        alpha=0.3,
        encoder_channels=8,
        projection_channels={'text': 3},
        **SMALL,
    ),
    'published': lambda data: MIGGT.from_data(data, **MIGGT.published('Sports')[0]),
    'table': lambda data: EmbeddingTable(torch.randn(100, 3), torch.randn(60, 3)),
}


@pytest.mark.parametrize('name', BUILT)
def test_a_model_is_built_from_its_file(data, tmp_path, name):
    path = tmp_path / 'model.safetensors'
    model = BUILT[name](data)
    save_model(model, path, {'a': 1}, data=data)
    state = torch.get_rng_state()
    for built, meta in (load_model(path, data=data), load_model(None, path, data=data)):
        assert meta == {'a': 1}
        assert type(built) is type(model)
        assert repr(built) == repr(model)
        for key, value in model.state_dict().items():
            other = built.state_dict()[key]
            assert other.dtype == value.dtype
            assert torch.equal(other, value)
        for key, parameter in model.named_parameters():
            got = built.get_parameter(key)
            assert got.requires_grad == parameter.requires_grad
        if name != 'half':
            graph = model.eval().build_graph(data)
            outs = model(graph), built.eval()(built.build_graph(data))
            assert all(torch.equal(x, y) for x, y in zip(*outs))
    assert torch.equal(torch.get_rng_state(), state)


def test_only_own_models_are_built(data, tmp_path):
    path = tmp_path / 'model.safetensors'
    for model in (adapter(data, num_layers=1), Other.from_data(data, **SMALL)):
        save_model(model, path)
        name = type(model).__name__
        with pytest.raises(ValueError, match=f"holds a '{name}', which can't be built"):
            load_model(path)
    with pytest.raises(TypeError, match="'path' must name the file"):
        load_model(model)
    with pytest.raises(TypeError, match="'model' must be a model if 'path' is given"):
        load_model(path, path)


class Extra(torch.nn.Module):
    def get_extra_state(self):
        return {'a': 1}


def test_what_can_not_be_saved(tmp_path):
    with pytest.raises(ValueError, match="must be fitted before its state is saved"):
        save_model(CertifiedHead(), tmp_path / 'model')
    with pytest.raises(TypeError, match=r"'_extra_state' in the state .*got 'dict'"):
        save_model(Extra(), tmp_path / 'model')
    assert list(tmp_path.iterdir()) == []


def test_integers_where_weights_belong(data, tmp_path):
    path = tmp_path / 'model.safetensors'
    model = LightGCN.from_data(data, **SMALL)
    save_model(model, path)
    tensors, header = load_tensors(path)
    save_tensors(path, {k: v.long() for k, v in tensors.items()}, header)
    for target in ((model, path), (path,)):
        with pytest.raises(ValueError, match=r"is torch.int64 in the file and \w+"):
            load_model(*target)


ROWS = np.array([[0, 0], [0, 1], [1, 1], [1, 2], [2, 0], [2, 2]])


def frame_data(order, scale=1.0):
    pd = pytest.importorskip('pandas')
    rows = pd.DataFrame({'user': [f'u{u}' for u, _ in ROWS], 'item': ROWS[:, 1] + 10})
    vectors = {10 + i: [scale * i, 1.0] for i in range(3)}
    return from_frame(rows.iloc[order], item_features={'text': vectors})


def test_other_data(tmp_path):
    path = tmp_path / 'model.safetensors'
    data, shuffled = frame_data([0, 1, 2, 3, 4, 5]), frame_data([4, 5, 2, 3, 0, 1])
    model = MGCN.from_data(data, **SMALL)
    save_model(model, path, {'a': 1}, data=data)
    assert load_model(model, path, data=data) == {'a': 1}
    # The same rows of a table in another order: sizes and shapes are the same.
    assert data['user'].raw_id != shuffled['user'].raw_id
    match = r'belongs to other data: .*user ids.* differ. Rows belong to positions'
    for target in ((model, path), (path,)):
        with pytest.raises(ValueError, match=match):
            load_model(*target, data=shuffled)
    fewer = DropForgotten()(ForgetUsers([1])(data))
    with pytest.raises(ValueError, match='other data: training pairs, user ids differ'):
        load_model(model, path, data=fewer)
    with pytest.raises(ValueError, match="other data: features 'text' differ"):
        load_model(model, path, data=frame_data([0, 1, 2, 3, 4, 5], scale=2.0))
    with pytest.warns(UserWarning, match='knows the data that its model belongs to'):
        load_model(model, path)
    save_model(model, path)
    with pytest.raises(ValueError, match=r"saved without 'data'.*save_model\(..."):
        load_model(model, path, data=data)
    # A request that is marked counts as deleted.
    save_model(model, path, data=fewer)
    load_model(model, path, data=ForgetUsers([1])(data))
    with pytest.raises(TypeError, match="'data' must be a 'HeteroData'"):
        save_model(model, path, data='Baby')


def test_ids_count_by_type_and_place(tmp_path):
    path = tmp_path / 'model.safetensors'
    data = frame_data([0, 1, 2, 3, 4, 5])
    model = LightGCN.from_data(data, **SMALL)
    save_model(model, path, data=data)
    for ids in (['10', '11', '12'], [11, 10, 12], [10, 11, 13], None):
        data['item'].raw_id = ids
        if ids is None:
            del data['item'].raw_id
        with pytest.raises(ValueError, match='belongs to other data: item ids differ'):
            load_model(model, path, data=data)
    for ids in (np.array([10, 11, 12]), torch.tensor([10, 11, 12]), (10, 11, 12)):
        data['item'].raw_id = ids
        load_model(model, path, data=data)


def test_features_that_are_left_out(data, tmp_path):
    path = tmp_path / 'model.safetensors'
    model = LightGCN.from_data(data, **SMALL)
    save_model(model, path, data=data)
    for name in schema.modalities(data):
        del data['item'][f'x_{name}']
    load_model(model, path, data=data)


def test_file_of_an_earlier_version(data, tmp_path):
    path = tmp_path / 'model.safetensors'
    model = LightGCN.from_data(data, **SMALL)
    old = {'model': 'LightGCN', 'meta': {'a': 1}}
    save_tensors(path, model.state_dict(), old)
    with pytest.warns(UserWarning, match='by an earlier version.*Save it again'):
        assert load_model(model, path) == {'a': 1}
    with pytest.raises(ValueError, match="saved without 'data'"):
        load_model(model, path, data=data)
    with pytest.raises(ValueError, match=r"can't be built from it .*of format 2"):
        load_model(path)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for other in (model.half(), LightGCN.from_data(data, hidden_channels=5)):
            with pytest.raises(ValueError, match='checkpoint of another model'):
                load_model(other, path)


def test_what_a_file_says_of_itself(data, tmp_path):
    path = tmp_path / 'model.safetensors'
    save_model(MGCN.from_data(data, **SMALL), path, data=data)
    with safe_open(path, 'pt') as file:
        header = json.loads(file.metadata()['torch_geometric_unlearn'])
    assert header['class'] == ['torch_geometric_unlearn.nn.models.mgcn', 'MGCN']
    kind, arguments = header['modules']['']
    assert kind == 'MGCN'
    assert arguments['num_layers'] == 2
    assert arguments['num_users'] == 100
    assert header['versions']['torch'] == torch.__version__
    parts = ['training pairs', 'user ids', 'item ids']
    assert list(header['data'])[:3] == parts


DAMAGED = [
    {'format': 3},
    {'format': 'x'},
    {'class': 'MGCN'},
    {'class': []},
    {'modules': []},
    {'modules': {}},
    {'modules': {'': 1}},
    {'modules': {'': ['MGCN']}},
    {'modules': {'': ['LightGCN', []]}},
    {'modules': {'': ['LightGCN', {'nonsense': 1}]}},
    {'modules': {'': ['LightGCN', {'num_users': -1}]}},
    {'data': 1},
    {'meta': []},
    {'model': 5},
]


@pytest.mark.parametrize('change', DAMAGED)
def test_damaged_headers(data, tmp_path, change):
    path = tmp_path / 'model.safetensors'
    model = LightGCN.from_data(data, **SMALL)
    save_model(model, path)
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, header | change)
    for target in ((model, path), (path,)):
        with pytest.raises(ValueError, match=r"'.*model.safetensors'"):
            load_model(*target)


def test_damaged_files(trained, tmp_path):
    path = tmp_path / 'model.safetensors'
    with pytest.raises(FileNotFoundError, match=r'There is no checkpoint'):
        load_model(trained, path)
    save_model(trained, path)
    content = path.read_bytes()
    for damaged in (content[:-10], b'', content[:9], b'x' * 99, content + b'x'):
        path.write_bytes(damaged)
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
