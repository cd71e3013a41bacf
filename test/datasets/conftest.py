from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

HEADER = 'userID\titemID\tx_label'
LINES = ('0\t0\t0', '0\t2\t1', '1\t1\t0', '1\t3\t2', '2\t3\t2', '1\t0\t0')


@pytest.fixture
def write_mmrec() -> Callable[..., Path]:
    r"""Writes a tiny dataset of 3 users and 4 items; user 2 has no training line."""

    def write(
        raw: Path,
        name: str,
        lines: tuple[str, ...] = LINES,
        header: str = HEADER,
        features: dict[str, np.ndarray] | None = None,
    ) -> Path:
        raw.mkdir(parents=True, exist_ok=True)
        (raw / f'{name}.inter').write_text('\n'.join([header, *lines]) + '\n')
        for modality, value in (features or {}).items():
            np.save(raw / f'{modality}_feat.npy', value)
        return raw

    return write


@pytest.fixture
def link_real(tmp_path: Path) -> Callable[[str, Path], None]:
    r"""Links the files of a real dataset into a raw folder, or skips the test."""

    def link(folder: str, raw: Path) -> None:
        real = os.environ.get('TGU_REAL_DATA')
        if not real or not (Path(real) / folder).is_dir():
            pytest.skip(f"'TGU_REAL_DATA' names no folder with '{folder}'")
        raw.mkdir(parents=True)
        for path in (Path(real) / folder).iterdir():
            (raw / path.name).symlink_to(path)

    return link


@pytest.fixture
def snap() -> SimpleNamespace:
    r"""Content of tiny raw files: a 5-core of 6 users and 5 items, and two reviews
    around it; item I3 has no image, I1 has two, and XX is in no review.
    """
    users, items = [f'U{i}' for i in range(6)], [f'I{i:09d}' for i in range(5)]
    reviews = [
        {'reviewerID': 'LONE', 'asin': items[0], 'overall': 1.0, 'unixReviewTime': 1}
    ]
    for i, item in enumerate(items):
        for u, user in enumerate(users):
            review = {'reviewerID': user, 'asin': item, 'reviewText': 'it\'s "ok"\n'}
            reviews.append({**review, 'overall': u % 5 + 1, 'unixReviewTime': 100 + i})
    reviews.append({**reviews[1], 'overall': 2.0, 'unixReviewTime': 7})  # Again.
    reviews.append({'reviewerID': 'U0', 'asin': 'XX', 'overall': 5.0})  # No time.
    meta = [
        {
            'asin': item,
            'title': f"Baby's blanket no{i}",
            'brand': 'Soft',
            'categories': [['Baby', f'Bed {i}'], ['Other']],
            'description': f'Warm and\ncosy {i}',
        }
        for i, item in enumerate(items)
    ]
    meta.append({'asin': 'XX', 'title': 'Not in the reviews'})
    images = [(items[i], float(i)) for i in (0, 1, 2, 4, 1)]
    images[-1] = (items[1], 7.0)
    images.append(('X' * 10, 99.0))
    return SimpleNamespace(
        users=users, items=items, reviews=reviews, meta=meta, images=images
    )


@pytest.fixture
def write_snap(snap: SimpleNamespace) -> Callable[..., Path]:
    r"""Writes the raw files of 'Baby' in the folders of the server."""

    def write(root: Path) -> Path:
        text, image = root / 'categoryFiles', root / 'image_features' / 'categoryFiles'
        text.mkdir(parents=True, exist_ok=True)
        image.mkdir(parents=True, exist_ok=True)
        with gzip.open(text / 'reviews_Baby_5.json.gz', 'wt') as file:
            file.writelines(json.dumps(review) + '\n' for review in snap.reviews)
        with gzip.open(text / 'meta_Baby.json.gz', 'wt') as file:
            file.writelines(repr(entry) + '\n' for entry in snap.meta)
        with open(image / 'image_features_Baby.b', 'wb') as file:
            for asin, value in snap.images:
                file.write(asin.encode() + np.full(4096, value, '<f4').tobytes())
        return root

    return write


class Handler(BaseHTTPRequestHandler):
    r"""Serves a folder; ``server.cuts`` holds, per answer, after how many bytes of
    the body the connection breaks (None: not at all).
    """

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append((self.path, self.headers.get('Range')))
        path = server.folder / self.path.lstrip('/')
        if server.status is not None or not path.is_file():
            self.send_error(server.status or 404)
            return
        content, start = path.read_bytes(), 0
        size = len(content)
        asked = self.headers.get('Range')
        same = self.headers.get('If-Range') == server.etag
        if asked and same and server.ranges:
            start = int(asked.removeprefix('bytes=').rstrip('-'))
            if start >= size:
                self.send_response(416)
                self.send_header('Content-Range', f'bytes */{size}')
                self.send_header('Content-Length', '0')
                self.end_headers()
                return
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {start}-{size - 1}/{size}')
        else:
            self.send_response(200)
        if server.etag:
            self.send_header('ETag', server.etag)
        if server.length:
            self.send_header('Content-Length', str(size - start))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        self.wfile.write(content[start:] if cut is None else content[start:][:cut])

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Any]]:
    r"""Serves a folder on a loopback address until the test ends."""
    servers: list[Any] = []

    def start(folder: Path) -> Any:
        server: Any = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        server.folder, server.asked, server.cuts = folder, [], []
        server.etag, server.ranges, server.length = '"v1"', True, True
        server.status = None
        server.url = f'http://127.0.0.1:{server.server_port}'
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
