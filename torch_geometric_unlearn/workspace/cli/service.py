r"""Commands that make and change what is in service."""

from __future__ import annotations

import argparse
import inspect
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch_geometric_unlearn.train.checkpoint import load_model
from torch_geometric_unlearn.train.fit import fit
from torch_geometric_unlearn.utils.seed import isolated_seed

from ..settings import Settings
from ..workspace import Workspace
from .answer import DONE, REVIEW, Answer, numbered, standing
from .source import absolute, find_function, open_workspace, read_source


def init(args: argparse.Namespace) -> Answer:
    root = Path(args.folder)
    if root.exists() and any(root.iterdir()):  # Before a training.
        raise FileExistsError(f"'{root}' is not empty. Choose another folder.")
    values: dict[str, Any] = {}
    if args.settings is not None:
        values = json.loads(Path(args.settings).read_text())
        try:
            Settings(key='', **values)
        except TypeError as error:
            raise ValueError(f"'{args.settings}' is wrong: {error}") from error
    settings = Settings(key='', **values)
    load_data, build_model = find_function(args.data), find_function(args.model)
    data = load_data()
    with isolated_seed(settings.seed):
        model = build_model(data)
    if args.trained is not None:
        load_model(model, args.trained, data=data)
    else:
        fit(model, data, seed=settings.seed, **settings.fit_args)
    ws = Workspace.create(
        root,
        data=data,
        model=model,
        build_model=build_model,
        key=args.key,
        source={'data': absolute(args.data), 'model': absolute(args.model)},
        **values,
    )
    key = ws.settings.key
    return Answer(
        {'workspace': str(root.resolve()), 'key': key, **ws.status()},
        [
            f"Made the workspace '{root}'.",
            f"Keep a copy of its key '{key}' where you keep secrets, apart from copies "
            f'of the folder.',
        ],
    )


def plan(args: argparse.Namespace) -> Answer:
    plan = open_workspace(args).plan()
    lines = [plan.reason]
    if plan.is_surge:
        lines.append(f'to review: {numbered(plan.requests)}')
    elif plan.requests:
        lines.append(f'requests: {numbered(plan.requests)}')
        lines.append(f'methods: {", then ".join(plan.methods)}')
    elif plan.decides or plan.replays:
        lines.append('a full training')
    return Answer(asdict(plan), lines, REVIEW if plan.is_surge else DONE)


def work(args: argparse.Namespace) -> Answer:
    ws = open_workspace(args)
    jobs = ws.work(now=args.now)
    lines = []
    for job in jobs:
        served = f', requests {numbered(job.requests)}' if job.requests else ''
        lines.append(f'job {job.id}: {job.verdict}{served}')
        for attempt, gates in job.gates.items():
            found = ', '.join(f'{name} {verdict}' for name, verdict in gates.items())
            lines.append(f'  {attempt}: {found}')
    after = standing(ws)
    content = {'jobs': [asdict(job) for job in jobs], 'status': after.content}
    return Answer(content, lines + after.lines, after.code)


def rollback(args: argparse.Namespace) -> Answer:
    ws = open_workspace(args)
    content, lines, *_ = _in_service(ws.rollback(args.who, args.why))
    job = ws.status()['rollback']
    if job is not None:
        lines.append(f"'work' completes the rollback: job {job}")
    return Answer(content | {'rollback': job}, lines)


def refresh(args: argparse.Namespace) -> Answer:
    ws = open_workspace(args)
    load_data = find_function(args.data or read_source(ws.root)['data'])
    # It needs the workspace to filter by.
    takes = inspect.signature(load_data).parameters
    data = load_data(ws) if takes else load_data()
    return _in_service(ws.refresh(data, args.who, args.why))


def _in_service(version: str) -> Answer:
    return Answer({'version': version}, [f'in service: {version[:12]}'])
