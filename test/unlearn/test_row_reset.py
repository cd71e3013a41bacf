import pytest
import torch

from torch_geometric_unlearn.transforms import ForgetInteractions, ForgetItems
from torch_geometric_unlearn.unlearn import RowReset


def test_resets_exactly_the_rows_of_deleted_items(data, trained):
    result = RowReset(init=lambda x: x.fill_(7.0))(trained, ForgetItems([2, 4])(data))
    new, old = result.model.item_embedding.weight, trained.item_embedding.weight
    changed = (new != old).any(dim=1).nonzero().view(-1)
    assert changed.tolist() == [2, 4]
    assert (new[[2, 4]] == 7.0).all()
    assert torch.equal(
        result.model.features['image'].weight, trained.features['image'].weight
    )


def test_initial_distribution(data, trained):
    rows = list(range(40))
    result = RowReset(seed=5)(trained, ForgetItems(rows)(data))
    new = result.model.item_embedding.weight[rows].detach()
    bound = (6 / (60 + 16)) ** 0.5
    assert new.abs().max() <= bound
    assert abs(float(new.std()) - bound / 3**0.5) < 0.1 * bound
    other = RowReset(seed=6)(trained, ForgetItems(rows)(data))
    assert not torch.equal(new, other.model.item_embedding.weight[rows])


def test_single_interactions_reset_nothing(data, trained):
    result = RowReset()(trained, ForgetInteractions(ratio=0.1)(data))
    assert max(result.touched.values()) == 0


def test_refuses_a_model_without_id_table(data, trained):
    class OnlyRaw(type(trained)):
        def tables(self):
            return [table for table in super().tables() if table.is_raw]

    model = OnlyRaw.from_data(data, hidden_channels=4)
    with pytest.raises(ValueError, match="'OnlyRaw' has no ID table"):
        RowReset()(model, ForgetItems([2])(data))
