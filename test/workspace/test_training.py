r"""Trainings from scratch that serve no batch, and that die."""

import shutil

import pytest

from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.workspace import Workspace, training
from torch_geometric_unlearn.workspace.cli.answer import standing

EPOCHS = 3


@pytest.fixture
def trainings(monkeypatch):
    r"""Records the epochs of trainings; an entry is the first epoch that is not."""
    deaths, epochs = [], []

    def dying(model, data, **kwargs):
        last = deaths.pop(0) if deaths else None
        epochs.append([])

        def note(_, entry):
            epochs[-1].append(int(entry['epoch']))
            if epochs[-1][-1] == last:
                raise KeyboardInterrupt

        kwargs |= {'num_epochs': EPOCHS}
        return fit(model, data, callbacks=[note], **kwargs)

    monkeypatch.setattr(training, 'fit', dying)
    return deaths, epochs


def undecided(cheap, ask, shop, clock):
    ask(cheap, users=[shop.user(3)])
    [job] = cheap.work(now=True)
    assert job.verdict == 'inconclusive'
    clock.wait(28)
    return job


def die(act, times=1):
    for _ in range(times):
        with pytest.raises(KeyboardInterrupt):
            act()


def test_a_decision_goes_on(cheap, quick, ask, shop, clock, trainings, tmp_path):
    deaths, epochs = trainings
    undecided(cheap, ask, shop, clock)
    root = shutil.copytree(cheap.root, tmp_path / 'whole' / 'shop')
    whole = Workspace(root, shop.build, clock)
    [expected] = whole.work()
    assert epochs.pop() == [0, 1, 2]
    deaths += [1, 2]
    die(cheap.work, 2)
    assert len(list((cheap.root / 'jobs').glob('*.ck'))) == 1
    [job] = cheap.work()
    assert epochs == [[0, 1], [1, 2], [2]]
    assert job == expected
    assert cheap.status()['version'] == whole.status()['version'] == job.version
    assert list((cheap.root / 'jobs').glob('*')) == []
    assert cheap.work() == []
    shop.check(cheap)


def test_a_decision_that_dies_three_times(cheap, ask, data, shop, clock, trainings):
    deaths, _ = trainings
    job = undecided(cheap, ask, shop, clock)
    deaths += [0, 0, 0]
    die(cheap.work, 3)
    [failed] = cheap.work()
    assert (failed.verdict, failed.version) == ('fail', None)
    assert cheap.status()['failed'] == failed.id
    assert standing(cheap).code == 3
    # Others are served: whoever waits, waits for nobody's decision.
    assert cheap.work() == []
    ask(cheap, users=[shop.user(4)])
    assert not cheap.plan().decides
    [other] = cheap.work(now=True)
    assert other.requests == [2]
    # Another version is another training.
    assert cheap.status()['failed'] is None
    assert cheap.plan().decides
    [decided] = cheap.work()
    assert decided.verdict == 'pass'
    assert decided.id not in (failed.id, job.id)
    shop.check(cheap)


def test_new_data_go_on(cheap, ask, data, shop, clock, trainings):
    deaths, epochs = trainings
    deaths += [2]
    die(lambda: cheap.refresh(data, 'eve', 'a new month'))
    before = cheap.status()['version']
    version = cheap.refresh(data, 'eve', 'a new month')
    assert cheap.status()['version'] == version != before
    assert epochs == [[0, 1, 2], [2]]
    assert list((cheap.root / 'jobs').glob('*')) == []
    shop.check(cheap)


def test_a_batch_ends_a_training_that_died(cheap, ask, data, shop, trainings):
    deaths, _ = trainings
    deaths += [2]
    die(lambda: cheap.refresh(data, 'eve', 'a new month'))
    cheap.doctor()
    assert len(list((cheap.root / 'jobs').glob('*.ck'))) == 1
    # It knows of the user who is erased now.
    ask(cheap, users=[shop.user(3)])
    [job] = cheap.work(now=True)
    assert job.version is not None
    assert list((cheap.root / 'jobs').glob('*')) == []
    shop.check(cheap)
