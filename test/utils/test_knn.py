import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from torch_geometric_unlearn.utils.knn import content_neighbors, cosine_knn_graph


def random_features(num=80, channels=12):
    return torch.randn(num, channels, generator=torch.Generator().manual_seed(0))


def brute_force(x, k):
    norm = x.norm(dim=1, keepdim=True)
    unit = x / torch.where(norm > 0, norm, 1.0)
    rows = (unit @ unit.t()).tolist()
    out = []
    for row in rows:
        out.append(sorted(range(len(row)), key=lambda j: (-round(row[j], 9), j))[:k])
    return out, [[row[j] for j in idx] for row, idx in zip(rows, out)]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('k', [1, 10, 200])
def test_against_brute_force(dtype, k):
    x = random_features().to(dtype)
    edge_index, weight = cosine_knn_graph(x, k)
    index, similarity = brute_force(x.double(), k)
    size = min(k, 80)
    assert edge_index.shape == (2, 80 * size)
    assert edge_index[0].view(80, size).tolist() == index
    assert edge_index[1].view(80, size).tolist() == [[i] * size for i in range(80)]
    expected = torch.tensor(similarity, dtype=torch.float64).view(-1)
    atol = 1e-6 if dtype == torch.float32 else 1e-12
    assert torch.allclose(weight.double(), expected, atol=atol)
    assert weight.dtype == dtype
    first = edge_index[0].view(80, size)[:, 0]
    assert first.tolist() == list(range(80))  # A row is its own nearest neighbour.


def test_against_sklearn():
    x = random_features()
    edge_index, weight = cosine_knn_graph(x, k=10)
    model = NearestNeighbors(n_neighbors=10, metric='cosine').fit(x.double().numpy())
    distance, index = model.kneighbors(x.double().numpy())
    assert edge_index[0].view(80, 10).tolist() == index.tolist()
    expected = torch.from_numpy(1 - distance).view(-1)
    assert torch.allclose(weight.double(), expected, atol=1e-6)


@pytest.mark.parametrize('num_rows', [1, 7, 33])
def test_memory_budget(num_rows):
    x = random_features()
    edge_index, weight = cosine_knn_graph(x, k=5)
    budget = num_rows * 3 * 80 * 4
    out = cosine_knn_graph(x, k=5, memory_budget=budget)
    assert torch.equal(out[0], edge_index)
    assert torch.allclose(out[1], weight, atol=1e-6)
    tiny = cosine_knn_graph(x, k=5, memory_budget=1)  # One row at a time.
    assert torch.equal(tiny[0], edge_index)


def test_zero_rows():
    x = random_features(12)
    x[[2, 7]] = 0
    edge_index, weight = cosine_knn_graph(x, k=12)
    index, similarity = brute_force(x.double(), 12)
    assert edge_index[0].view(12, 12)[2].tolist() == list(range(12))
    assert edge_index[0].view(12, 12).tolist() == index
    assert weight.view(12, 12)[[2, 7]].abs().sum() == 0
    expected = torch.tensor(similarity, dtype=torch.float64).view(-1)
    assert torch.allclose(weight.double(), expected, atol=1e-6)


@pytest.mark.parametrize('budget', [2**20, 17 * 3 * 70 * 4])
def test_tied_rows_take_the_lowest_ids(budget):
    x = random_features(70, 384)
    tied = torch.arange(5, 70, 4)
    x[tied] = x.mean(dim=0)  # As items without an image share the mean vector.
    edge_index, weight = cosine_knn_graph(x, k=10, memory_budget=budget)
    lists = edge_index[0].view(70, 10)
    assert (lists[tied] == tied[:10]).all()
    assert torch.allclose(weight.view(70, 10)[tied], torch.ones(17, 10), atol=1e-5)


def test_bad_k():
    with pytest.raises(ValueError, match=r"'k' must be at least 1 \(got 0\)"):
        cosine_knn_graph(random_features(), k=0)


def test_content_neighbors():
    assert content_neighbors([]) is None
    x = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0.9, 0.1], [0, 1]])
    assert content_neighbors([x[:1]]) is None
    expected = [[1, 2], [0, 2], [0, 1], [0, 1], [3, 0]]
    assert content_neighbors([x], 2).tolist() == expected
    assert content_neighbors([x, 3 * x], 2).tolist() == expected
    assert content_neighbors([x], 9).shape == (5, 4)


@pytest.mark.parametrize('scale', [1e-25, 1e-38, 1e20, 3e37])
def test_the_scale_of_features_does_not_matter(scale):
    x = random_features()
    x[5] = 0
    expected, weight = cosine_knn_graph(x, k=5)
    for y in (x * scale, torch.cat([x[:40] * scale, x[40:]])):
        edge_index, similarity = cosine_knn_graph(y, k=5)
        assert torch.equal(edge_index, expected)
        assert torch.allclose(similarity, weight, atol=1e-5)
        assert torch.equal(content_neighbors([y], 5), content_neighbors([x], 5))
