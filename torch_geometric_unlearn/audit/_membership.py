r"""One membership audit: the attack on the examples of a request."""

from __future__ import annotations

import math
import warnings
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.models.served import Served
from torch_geometric_unlearn.utils.knn import content_neighbors

from ._attack import (
    METRICS,
    MIN_EXAMPLES,
    Attacker,
    MembershipResult,
    Settings,
    attack_figures,
    compare_features,
    cross_validate,
    fill_direction,
    fill_result,
    plot_scores,
)
from ._examples import Examples, ExampleSampler
from ._features import PairFeatures
from .exchangeability import compare_covariates


class MembershipAudit:
    r"""Attacks models of one request, all of them by the same examples.

    Args:
        data (HeteroData): The data with the request still marked.
        settings (Settings): How to attack.
    """

    def __init__(self, data: HeteroData, settings: Settings) -> None:
        data = schema.validate(data)
        self.data, self.settings = data, settings
        self.neighbors = content_neighbors(schema.features(data).values())
        self.examples = ExampleSampler(data, settings)

    def source(self, model: Any, graph: Any = None) -> PairFeatures:
        r"""Returns the features of a model.

        Raises:
            ValueError: If the graph that the model builds holds a forgotten pair.
        """
        served = Served.of(model, self.data, graph)
        return PairFeatures(served, self.data, self.neighbors)

    def __call__(self, source: PairFeatures, mode: str) -> MembershipResult:
        r"""Attacks one model."""
        result = MembershipResult(mode, self.settings.level)
        train = None if mode == 'direct' else self.examples.train
        return self.attack(source, result, self.examples.test, train)

    def attack(
        self,
        source: PairFeatures,
        result: MembershipResult,
        test: Examples,
        train: Examples | None = None,
    ) -> MembershipResult:
        r"""Tests on :obj:`test` an attacker trained on :obj:`train`, or by
        cross-validation.
        """
        #: Metrics of the last attack on resamples of the groups.
        self.resamples = dict.fromkeys(METRICS, torch.tensor([math.nan]).double())
        label, group, given = test.label, test.group, self.settings
        result.num_members, result.num_nonmembers = test.counts
        for side, examples in (('testing', test), ('training', train)):
            if examples is not None and min(examples.counts) < MIN_EXAMPLES:
                result.reason = _too_few(examples, side, given.level)
                warnings.warn(result.reason, stacklevel=4)
                return result
        x, names = _features(source, test)
        if train is None:
            score, guess, result.classifier = cross_validate(
                x, label, group, given.classifiers, given.num_folds, given.seed
            )
        else:
            attacker = Attacker(given.classifiers, given.seed)
            attacker.fit(_features(source, train)[0], train.label, train.group)
            score = attacker(x)
            guess = score > attacker.threshold
            result.classifier = attacker.name
        self.resamples = fill_result(
            result, score, guess, label, group, given.num_bootstrap, given.seed
        )
        pairs = given.level == 'pair' and self.examples.negatives != 'random'
        if pairs and test is self.examples.test:
            self._add_balance(result, score, guess)
        result.features = compare_features(x, label, names)
        result.scores, above = plot_scores(x, label, names, given.seed)
        if given.level != 'neighbours':
            fill_direction(result, above)
        return result

    def _add_balance(
        self, result: MembershipResult, score: Tensor, guess: Tensor
    ) -> None:
        r"""Says what the examples differ in without a model, and weighs it away."""
        found, log_odds = self._balance
        negatives, label = self.examples.negatives, self.examples.test.label
        result.details |= {'negatives': negatives, 'exchangeability': found}
        if found['exchangeable']:
            return
        propensity = log_odds.sigmoid()
        weight = torch.where(label, 1 - propensity, propensity).unsqueeze(0)
        figures = attack_figures(score, guess, label, weight)
        result.details['weighted'] = {k: float(v) for k, v in figures.items()}

    @cached_property
    def _balance(self) -> tuple[dict[str, Any], Tensor]:
        source, given = self.examples, self.settings
        return compare_covariates(
            self.data, source.test, source.row, given.num_bootstrap, given.seed
        )


def _features(source: PairFeatures, examples: Examples) -> tuple[Tensor, list[str]]:
    if examples.ids.numel() == 0:
        return source(examples.pairs), source.names
    return source.of_histories(examples.pairs, examples.ids)


def _too_few(examples: Examples, side: str, level: str) -> str:
    members, others = examples.counts
    advice = 'Mark more, or keep more pairs out of training.'
    if level == 'user':
        advice = "Set users aside before training with 'hold_out_users'."
    return (
        f'The attack needs {MIN_EXAMPLES} members and as many non-members for {side} '
        f'(got {members} and {others}), so its metrics are NaN. {advice}'
    )
