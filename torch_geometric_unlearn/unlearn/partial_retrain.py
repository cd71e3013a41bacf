from __future__ import annotations

import os
from typing import Any

from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.digest import data_digest
from torch_geometric_unlearn.distributed.columns import whole_state
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.train.checkpoint import exists
from torch_geometric_unlearn.utils.check import check_bool, check_float, check_int
from torch_geometric_unlearn.utils.digest import tensor_digest

from ._row_training import RowTraining, better_start
from ._touched_rows import reset_features, row_types, start_smoothly, touched_rows
from .base import Unlearner
from .row_reset import draw_rows, lacks_id_table

#: Above this share of deleted pairs, the frozen modules have seen too much of them.
MAX_DELETED = 0.5


class PartialRetrain(Unlearner):
    r"""Draws the rows that a deletion touches anew and trains them by the model's own
    loss on what is retained, with everything else frozen [ours].

    ID rows hold nearly all memory of single pairs. A row :math:`n` is drawn anew, as
    the model itself did at first, if the request names it, or if the deletion has had
    enough influence on it,

    .. math::
        s(n) + \frac{1}{|\mathcal{N}(n)|} \sum_{m \in \mathcal{N}(n)} s(m) \geq \tau,

    where :math:`s` is the share of a node's training pairs that is deleted, and
    :math:`\mathcal{N}` are its retained neighbours: the second term is what reached the
    row through those that it was trained together with. Popular items that lose one
    purchase in a hundred hold next to nothing of it and stay. As soon as the rows that
    are drawn anew take part in more than a quarter of the retained pairs, *all* rows
    are: a step costs the same, and no attacker can tell a deleted pair by the freshness
    of its rows. Raw feature rows, where a model trains some, are set back to the
    features.

    A model that is nothing but its ID tables, such as
    :class:`~torch_geometric_unlearn.nn.LightGCN`, would then have lost all that it
    knows. So a second start is tried: what the retained interactions alone can tell of
    the original rows, their projection on the leading singular vectors of the retained,
    normalised interactions, as many as the rows have channels, and at most a sixteenth
    of the users or items. Whichever start is better on validation pairs of the rows
    after the first epoch goes on.

    Then Adam trains these rows on the triplets of a training epoch that touch them
    (:obj:`loader.row_loader.RowLoader`), in batches of half of :obj:`batch_size`, with
    a learning rate that falls from five times to twice :obj:`lr`, and goes on at the
    latter while an epoch still lifts the NDCG on the validation pairs of these rows by
    more than 1 %. Rows without a retained pair stay as drawn, as in a retrained model.
    Other rows, and what all nodes share, are left bit-identical.

    There is nothing to aim at, to reverse or to stop by: a request of one pair is
    served like one of 5 %, and a request after another starts from fresh rows. It is
    not exact: the frozen rows, and shared modules such as projections and gates, come
    from a training that saw the deleted pairs in sums over everything. For a model
    without item rows, such as :class:`~torch_geometric_unlearn.nn.MIGGT`, only users
    are drawn anew: what its encoders have learned about an item stays, unless
    :obj:`shared_lr` lets them move. Measured on Amazon Baby, 5 %, membership was then
    like retraining at user-level, and .10 and .11 (balanced accuracy) above it for
    interactions and items.

    Related are RecEraser and :class:`~torch_geometric_unlearn.unlearn.UltraRE`, which
    retrain shards, and SCIF and
    :class:`~torch_geometric_unlearn.unlearn.InfluenceFunction`, which move rows by
    their influence. The settings were chosen on validation pairs of Amazon Baby and on
    generated data.

    The cost follows the neighbourhood of the request where the model tells its
    :obj:`row_branches` (:class:`~torch_geometric_unlearn.nn.MGCN`,
    :class:`~torch_geometric_unlearn.nn.LightGCN`); other models take full steps.

    Args:
        tau (float, optional): Influence :math:`\tau` from which on a row is drawn anew;
            at 0, every row that the deletion has reached over one or two edges.
            (default: :obj:`0.05`)
        num_epochs (int, optional): Passes over the touched triplets; at most three
            times as many while the validation curve rises. (default: :obj:`5`)
        min_steps (int, optional): Least number of steps, and twice as many where all
            rows are drawn anew: fresh rows need some steps to arrive, however few
            batches there are. (default: :obj:`200`)
        lr (float, optional): Learning rate of the training. (default: :obj:`1e-3`)
        batch_size (int, optional): Batch size of the training.
            (default: :obj:`2048`)
        shared_lr (float, optional): Learning rate of what all nodes share; frozen at 0,
            and every step is a full one above. (default: :obj:`0.0`)
        checkpoint (str or Path, optional): File to keep the state of a long run in,
            once per epoch. It holds rows of the model. (default: :obj:`None`)
        resume (bool, optional): Whether to go on from :obj:`checkpoint` if it exists;
            on the CPU, the result is that of an uninterrupted run.
            (default: :obj:`False`)
        seed (int, optional): Seed of fresh rows and batches. (default: :obj:`0`)

    The history has a row per epoch: :obj:`epoch`, :obj:`steps`, :obj:`loss` (mean),
    :obj:`lr` of the last step, :obj:`touched_val_ndcg@20` on the validation pairs of
    users and items that were drawn anew (of at most 2,000 users; with fewer than 200
    pairs in the last epoch only, else NaN), :obj:`selected`, :obj:`num_users` and
    :obj:`num_items` (rows drawn anew),
    :obj:`num_trained` (those with a retained pair), :obj:`num_pairs` (retained pairs
    that touch the latter), :obj:`all_rows`, :obj:`smooth_start` (whether the rows
    started from the projection; after a choice, the first row has the NDCG of the other
    start as :obj:`other_start_ndcg@20`), :obj:`path` (:obj:`'response'`,
    :obj:`'propagate'` or :obj:`'model'`) and :obj:`seconds`. With at least 200 such
    validation pairs the best epoch is returned, else the last one.

    Raises:
        ValueError: If an argument is out of range or can't act, the model has no ID
            table or a frozen or half-precision one, the request deletes more than half
            of the training pairs, or the checkpoint belongs to another model, request
            or other settings.
        FileExistsError: If :obj:`checkpoint` exists and :obj:`resume` is not set.
        FloatingPointError: If the loss is no longer finite.

    Example:
        >>> result = PartialRetrain()(model, ForgetUsers([3])(data))
        >>> result.history[0]['num_users'] >= 1
        True
    """

    serves_nodes = True
    serves_columns = True

    def __init__(
        self,
        tau: float = 0.05,
        num_epochs: int = 5,
        min_steps: int = 200,
        lr: float = 1e-3,
        batch_size: int = 2048,
        shared_lr: float = 0.0,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.tau = check_float(tau, 'tau', 0.0)
        self.num_epochs = check_int(num_epochs, 'num_epochs', 1)
        self.min_steps = check_int(min_steps, 'min_steps', 0)
        self.lr = check_float(lr, 'lr', 1e-12)
        self.batch_size = check_int(batch_size, 'batch_size', 1)
        self.shared_lr = check_float(shared_lr, 'shared_lr', 0.0)
        self.resume = check_bool(resume, 'resume')
        if resume and checkpoint is None:
            raise ValueError(
                "'resume' needs a 'checkpoint' to go on from (got None). Name the file."
            )
        self.checkpoint = checkpoint

    def supports(self, model: RecommenderLike, data: HeteroData) -> tuple[bool, str]:
        ok, reason = super().supports(model, data)
        if not ok:
            return ok, reason
        reason = lacks_id_table(model) or self._unfit(model)
        share = float(schema.forget_mask(data).float().mean())
        if not reason and share > MAX_DELETED:
            reason = (
                f'it deletes {share:.0%} of the training pairs, of which too much '
                f"would be left in what stays frozen. Use 'Retrain'"
            )
        return not reason, reason

    def _unfit(self, model: RecommenderLike) -> str:
        tables = model.tables()
        for table in tables:
            if table.is_raw:
                continue
            if not table.parameter.requires_grad:
                return (
                    "a table is frozen ('requires_grad' is False), so its rows can't "
                    'be trained again. Unfreeze it'
                )
        known = {id(table.parameter) for table in tables}
        if self.shared_lr > 0 and all(id(p) in known for p in model.parameters()):
            return (
                f"'shared_lr' can't act (got {self.shared_lr}): the model has nothing "
                f'but tables'
            )
        return ''

    def _unlearn(
        self, model: RecommenderLike, data: HeteroData, retained: HeteroData
    ) -> tuple[RecommenderLike, list[dict[str, Any]]]:
        path = self.checkpoint
        if path is not None and exists(path) and not self.resume:
            raise FileExistsError(
                f"'{path}' exists. Pass resume=True to go on from it, or remove it."
            )
        num_users = schema.num_users(data)
        touched = touched_rows(data, retained, self.tau, row_types(model))
        settings = self._settings()
        for key in ('checkpoint', 'resume'):
            settings.pop(key, None)
        if path is not None:
            rows = [touched.users, touched.items, touched.trained_users]
            settings |= {
                'data': data_digest(data),
                'original': _digest(model),
                'rows': tensor_digest([*rows, touched.trained_items]),
            }
        tables: list[Tensor] = []  # Small requests need no copy of the whole tables.
        if touched.is_all:
            own = [table.parameter for table in model.tables() if not table.is_raw]
            tables = [parameter.detach().clone() for parameter in own]
        draw_rows(model, touched.users, touched.items, num_users)
        reset_features(model, retained, touched.items)
        graph = model.build_graph(retained)
        run = RowTraining(model, graph, retained, touched, settings)
        if path is not None and exists(path):
            run.load(path)
        elif (
            touched.is_all
            and run.can_choose
            and start_smoothly(model, tables, retained)
        ):
            smooth = RowTraining(model, graph, retained, touched, settings)
            run = better_start(run, smooth, path)
        run.train(path)
        return model, run.history


def _digest(model: RecommenderLike) -> str:
    r"""Returns a hash of all parameters and buffers, of whole tables."""
    return tensor_digest(x for _, x in whole_state(model))
