r"""Membership inference by an attacker who sees the audited model and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.utils.check import check_choice

from ._attack import CLASSIFIERS, MembershipResult, Settings
from ._membership import MembershipAudit
from .self_check import check_attacker


def membership(
    model: Any,
    data: HeteroData,
    graph: Any = None,
    mode: str = 'direct',
    level: str = 'pair',
    negatives: str = 'auto',
    classifiers: Sequence[str] = CLASSIFIERS,
    num_folds: int = 5,
    max_examples: int = 10_000,
    num_bootstrap: int = 1000,
    seed: int = 0,
    original: Any = None,
) -> MembershipResult:
    r"""Attacks a model: can what it should have forgotten be told from what it has
    never seen?

    The attacker queries the audited model alone (see below), never the original model,
    degrees or ids, as the scores of the original would give membership away
    [ours: papers on unlearning report balanced accuracies, but no attacker].

    **Examples.** Members are the forgotten pairs, non-members the control pairs of the
    same users (of the same items in an item-level request), or else their test pairs,
    equally many per user (item). The split being random, a model that has seen neither
    can't tell them apart, so retraining gives 0.5. As users with a short history have
    a larger share of it in the test split, the members of an item are drawn such that
    their users are a sample like those of its test pairs; they still have one retained
    pair less, so look at retraining's value there. Random pairs
    (:obj:`negatives='random'`) are separated by any good recommender without memory
    and are offered for comparison only.

    **Yardstick.** Under a split by time, test pairs differ from trained ones without
    any memory. :obj:`details['exchangeability']` says whether members and non-members
    can be told apart by popularity, activity and time alone, and, if so,
    :obj:`details['weighted']` has the figures with overlap weights, under which both
    sides agree in these [ours]. Control pairs
    (:class:`~torch_geometric_unlearn.transforms.SplitInteractions`) and the value of a
    retrained model (:meth:`~torch_geometric_unlearn.audit.compare_membership`) are the
    better yardsticks.

    **Modes.** :obj:`'direct'` is the headline: cross-validation over these examples,
    grouped by user (item), which finds *any* difference, also pairs pushed too far
    down. :obj:`'transfer'` is trained on the retained pairs of users (items) outside
    the request against their validation pairs and tested on the same examples; it
    finds what is left of memory and takes pairs that were pushed down for unseen ones.

    **Levels.** :obj:`'pair'` as above. :obj:`'user'`: one example per deleted user,
    against users that were never trained on (see
    :meth:`~torch_geometric_unlearn.audit.hold_out_users`), with mean, minimum, maximum
    and spread of the pair features and the distance between history and list.
    :obj:`'neighbours'` (direct only): retained users who shared at least three
    deleted items with one user of the request, against retained users who did not,
    equally many by length of history and quintile of mean item popularity [ours:
    sharing items goes with both]. Users who share items still lie closer together in
    any model, so only the difference to retraining counts there, and no direction is
    given.

    **Features** of a pair: score, raw and standardised over the user's row and the
    item's column; logarithm of the rank with retained positives masked; margin to the
    user's 20th score; cosine; both norms; mean score of the ten content neighbours of
    the item; score and rank in every branch, if the model has
    :obj:`branch_embeddings`.

    Args:
        model (torch.nn.Module or Served): The audited model.
        data (HeteroData): The data with the request *still marked*.
        graph (Any, optional): What the model propagates over; the retained
            interactions if not given. Pass the graph of the unmarked data only for
            the original model as it was in service. (default: :obj:`None`)
        mode (str, optional): :obj:`'direct'` or :obj:`'transfer'`.
            (default: :obj:`'direct'`)
        level (str, optional): :obj:`'pair'`, :obj:`'user'` or :obj:`'neighbours'`.
            (default: :obj:`'pair'`)
        negatives (str, optional): :obj:`'control'`, :obj:`'heldout'` for the test
            split, :obj:`'random'`, or :obj:`'auto'` for control pairs where at least 50
            can be compared and the test split elsewhere; for pairs only.
            (default: :obj:`'auto'`)
        classifiers (sequence, optional): Candidates, of which the better one on the
            training side is used: logistic regression and gradient boosting (200 trees
            of depth 3). (default: :obj:`('logistic', 'boosting')`)
        num_folds (int, optional): Folds of the direct mode. (default: :obj:`5`)
        max_examples (int, optional): Examples per side. (default: :obj:`10_000`)
        num_bootstrap (int, optional): Resamples of users (items) for the intervals.
            (default: :obj:`1000`)
        seed (int, optional): Seed of draws, folds and classifiers.
            (default: :obj:`0`)
        original (torch.nn.Module or Served, optional): The original model, for a
            :meth:`~torch_geometric_unlearn.audit.self_check` beside the result, on
            which it has no influence. (default: :obj:`None`)

    Returns:
        MembershipResult: Metrics with their intervals; NaN with a warning with fewer
        than 50 examples on a side.

    Raises:
        ImportError: If scikit-learn is missing.
        ValueError: If an argument is out of range, or the graph that the model builds
            still holds forgotten pairs.

    Example:
        >>> from torch_geometric_unlearn.audit import membership
        >>> data = SyntheticMultimodal('tiny', num_users=400)[0]
        >>> model = MGCN.from_data(data, hidden_channels=16)
        >>> result = membership(model, ForgetUsers(ratio=0.3)(data))
        >>> result.num_members == result.num_nonmembers
        True
    """
    check_choice(mode, 'mode', ('direct', 'transfer'))
    settings = Settings(
        level, negatives, classifiers, num_folds, max_examples, num_bootstrap, seed
    )
    if level == 'neighbours' and mode == 'transfer':
        raise ValueError(
            "'mode' must be 'direct' for the level 'neighbours' (got 'transfer'): "
            'retained users are members already.'
        )
    audit = MembershipAudit(data, settings)
    result = audit(audit.source(model, graph), mode)
    if original is not None:
        result.check = check_attacker(audit, original)
    return result
