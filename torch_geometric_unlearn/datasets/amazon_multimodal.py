from __future__ import annotations

import os
import os.path as osp
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets._amazon_raw import (
    IMAGE_RECORD_BYTES,
    k_core,
    read_image_features,
    read_reviews,
    read_sentences,
)
from torch_geometric_unlearn.datasets._download import (
    download,
    verify_gzip,
    verify_records,
)
from torch_geometric_unlearn.datasets._mmrec import (
    Interactions,
    check_files,
    check_modalities,
    read_mmrec,
)
from torch_geometric_unlearn.datasets._stored import StoredDataset
from torch_geometric_unlearn.datasets._text_features import (
    TextEncoder,
    check_installed,
    encode_texts,
    encoder_digest,
    encoder_name,
)
from torch_geometric_unlearn.transforms.split_interactions import split_per_user
from torch_geometric_unlearn.utils.check import check_bool, check_choice, check_int
from torch_geometric_unlearn.utils.seed import check_seed


class AmazonMultimodal(StoredDataset):
    r"""The Amazon review datasets with image and text features of the items, from the
    `"Image-based Recommendations on Styles and Substitutes"
    <https://arxiv.org/abs/1506.04757>`_ paper, in the form that multimodal
    recommenders are compared on (`"MMRec: Simplifying Multimodal Recommendation"
    <https://arxiv.org/abs/2302.03497>`_): 5-core, every review a positive, split at
    random per user.

    There are two sources. If the folder :obj:`<root>/<name>/raw` holds
    :obj:`<name>.inter` (lower case), the files there are read as they are:

    * :obj:`<name>.inter`: tab-separated with a header; columns :obj:`userID`,
      :obj:`itemID` (0-based) and :obj:`x_label` (0 train, 1 validation, 2 test) in
      any order, optional :obj:`rating` and :obj:`timestamp`, others are skipped. The
      numbers of users and items are the largest ids plus one over the whole file.
      Held-out interactions of users without a training interaction are dropped.
    * :obj:`image_feat.npy`, :obj:`text_feat.npy`: one row per item, of any width.

    Published results belong to one random split, which only its ``.inter`` file
    reproduces. Otherwise, everything is built from the raw files of the
    `Amazon product data <https://snap.stanford.edu/data/amazon/productGraph>`_, which
    are downloaded (gigabytes for images; broken-off downloads are continued):

    * reviews without user, item or time are dropped, then all reviews of a pair but
      its first, then all outside the 5-core; ids are given by first appearance and
      the raw ones kept as :obj:`raw_id` of users and items, as lists of strings;
    * the split is drawn per user from :obj:`seed`, kept as :obj:`data.split_seed`, by
      the rule of :class:`~torch_geometric_unlearn.transforms.SplitInteractions`;
    * the text of an item is its title, brand, first category path and description,
      encoded by :obj:`text_encoder`;
    * image features are the 4,096 values of the raw file; items without an image get
      the mean of the others.

    Training interactions carry :obj:`rating` (float32) and :obj:`time` (int64, Unix
    time in seconds) if the source does.

    .. list-table::
        :header-rows: 1

        * - name
          - users
          - items
          - interactions
        * - ``Baby``
          - 19,445
          - 7,050
          - 160,792
        * - ``Sports``
          - 35,598
          - 18,357
          - 296,337
        * - ``Clothing``
          - 39,387
          - 23,033
          - 278,677
        * - ``Electronics``
          - 192,403
          - 63,001
          - 1,689,188

    Args:
        root (str): Root directory of the dataset.
        name (str): :obj:`"Baby"`, :obj:`"Sports"`, :obj:`"Clothing"` or
            :obj:`"Electronics"`, in any case.
        modalities (tuple[str], optional): Which of :obj:`"image"` and :obj:`"text"`
            to load. Files of others are not needed.
            (default: :obj:`("image", "text")`)
        source (str, optional): :obj:`"mmrec"` (the ``.inter`` file), :obj:`"snap"`
            (the raw files), or :obj:`"auto"` (:obj:`"mmrec"` if the ``.inter``
            file exists). (default: :obj:`"auto"`)
        seed (int, optional): Seed of the split. Only for source :obj:`"snap"`.
            (default: :obj:`0`)
        text_encoder (str or callable, optional): The name or path of a
            sentence-transformers model, :obj:`"tfidf"` (TF-IDF, a truncated SVD and
            unit length), or a callable from a list of strings to an array of shape
            :obj:`[num_items, F]`. Only for source :obj:`"snap"`.
            (default: :obj:`"all-MiniLM-L6-v2"`, 384 columns)
        text_encoder_name (str, optional): Name of a callable encoder, which tells
            its processed files from others. (default: its module, name and content)
        text_channels (int, optional): Number of columns of :obj:`"tfidf"`.
            (default: :obj:`384`)
        base_url (str, optional): Where to download the raw files from, a mirror of
            the folder :obj:`productGraph`. (default: :obj:`None`, the address of SNAP)
        transform (callable, optional): A transform applied before every access.
            (default: :obj:`None`)
        pre_transform (callable, optional): A transform applied before saving. All
            that it consists of, code and attributes, decides on the processed file's
            name. (default: :obj:`None`)
        force_reload (bool, optional): Whether to process the raw files again, e.g.
            after replacing one. (default: :obj:`False`)
        log (bool, optional): Whether to print the progress. (default: :obj:`True`)

    Shapes:
        - **x_image:** :math:`(N_{item}, F_v)`, float32
        - **x_text:** :math:`(N_{item}, F_t)`, float32
        - **edge_index:** :math:`(2, E)` training interactions, int64
        - **val_edge_label_index, test_edge_label_index:** :math:`(2, *)`, int64

    Raises:
        FileNotFoundError: If a file of source :obj:`"mmrec"` is missing.
        ValueError: If an argument is unknown, or a file is damaged or breaks its
            format; names the file and, for text files, the line.
        ImportError: If the package of :obj:`text_encoder` is missing.
        ConnectionError: If a raw file can't be downloaded.
        OSError: If :obj:`root` can't be written.

    Example:
        .. code-block:: python

            dataset = AmazonMultimodal('data/Amazon', 'Baby', text_encoder='tfidf')
            data = dataset[0]
            data['item'].x_image.shape  # torch.Size([7050, 4096])
            data['item'].raw_id[0]  # '097293751X'
    """

    url = 'http://snap.stanford.edu/data/amazon/productGraph'
    categories: ClassVar[dict[str, str]] = {
        'Baby': 'Baby',
        'Sports': 'Sports_and_Outdoors',
        'Clothing': 'Clothing_Shoes_and_Jewelry',
        'Electronics': 'Electronics',
    }

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str,
        modalities: Sequence[str] = ('image', 'text'),
        source: str = 'auto',
        seed: int = 0,
        text_encoder: TextEncoder = 'all-MiniLM-L6-v2',
        text_encoder_name: str | None = None,
        text_channels: int = 384,
        base_url: str | None = None,
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
        force_reload: bool = False,
        log: bool = True,
    ) -> None:
        names = {key.lower(): key for key in self.categories}
        if not isinstance(name, str) or name.lower() not in names:
            raise ValueError(
                f"'name' must be one of {tuple(self.categories)} (got {name!r})"
            )
        self.name = names[name.lower()]
        self.modalities = check_modalities(modalities, ('image', 'text'))
        self.seed = check_seed(seed)
        self.text_encoder = text_encoder
        self.text_encoder_name = encoder_name(text_encoder, text_encoder_name)
        self._encoder_digest = ''
        if not isinstance(text_encoder, str) and text_encoder_name is None:
            self._encoder_digest = encoder_digest(text_encoder)
        self.text_channels = check_int(text_channels, 'text_channels', 1)
        self.base_url = (base_url or self.url).rstrip('/')
        self.root = osp.normpath(osp.expanduser(os.fspath(root)))
        self.source = self._find_source(source)
        log = check_bool(log, 'log')
        force_reload = check_bool(force_reload, 'force_reload')
        super().__init__(
            self.root, transform, pre_transform, log=log, force_reload=force_reload
        )
        self.load(self.processed_paths[0], data_cls=HeteroData)

    @property
    def raw_dir(self) -> str:
        return osp.join(self.root, self.name, 'raw')

    @property
    def processed_dir(self) -> str:
        return osp.join(self.root, self.name, 'processed')

    @property
    def raw_file_names(self) -> list[str]:
        if self.source == 'mmrec':
            features = [f'{modality}_feat.npy' for modality in self.modalities]
            return [f'{self.name.lower()}.inter', *features]
        category = self.categories[self.name]
        names = {
            'text': f'meta_{category}.json.gz',
            'image': f'image_features_{category}.b',
        }
        features = [names[modality] for modality in self.modalities]
        return [f'reviews_{category}_5.json.gz', *features]

    @property
    def processed_file_names(self) -> str:
        options: list[Any] = [self.source, '-'.join(self.modalities) or 'none']
        if self.source == 'snap':
            options.append(f'seed{self.seed}')
            if 'text' in self.modalities:
                options += [self.text_encoder_name, self._encoder_digest]
                if self.text_encoder == 'tfidf':
                    options.append(self.text_channels)
        return self.processed_name(*options)

    def download(self) -> None:
        if self.source == 'mmrec':
            check_files(
                self.raw_dir,
                self.raw_file_names,
                'To build the dataset from the files of SNAP instead, pass '
                "source='snap'.",
            )
            return
        if 'text' in self.modalities:
            check_installed(self.text_encoder)  # Before gigabytes are downloaded.
        for name, path in zip(self.raw_file_names, self.raw_paths):
            is_image = name.endswith('.b')
            folder = 'image_features/categoryFiles' if is_image else 'categoryFiles'
            verify = partial(verify_records, num_bytes=IMAGE_RECORD_BYTES)
            download(
                f'{self.base_url}/{folder}/{name}',
                path,
                verify=verify if is_image else verify_gzip,
                log=self.log,
            )

    def process(self) -> None:
        if self.source == 'mmrec':
            data = read_mmrec(self.raw_dir, self.name.lower(), self.modalities)
        else:
            data = self._read_snap()
        if self.pre_transform is not None:
            data = self.pre_transform(data)
        self.save([schema.validate(data)], self.processed_paths[0])

    def _read_snap(self) -> HeteroData:
        paths = dict(zip(['reviews', *self.modalities], self.raw_paths))
        reviews = read_reviews(paths['reviews'])
        core = k_core(reviews.user, reviews.item)
        if not core.any():
            raise ValueError(
                f"'{paths['reviews']}' must hold a 5-core, users and items with at "
                f'least 5 reviews each (got none among {len(core)} reviews). The '
                f'file is cut off or of another kind: download it again.'
            )
        reviews = reviews.select(core)
        label = split_per_user(torch.from_numpy(reviews.user), seed=self.seed)
        data = Interactions(
            user=reviews.user,
            item=reviews.item,
            label=label.numpy(),
            num_users=len(reviews.user_ids),
            num_items=len(reviews.item_ids),
            extras={'rating': reviews.rating, 'time': reviews.time},
        ).to_data()
        data[schema.USER].raw_id = reviews.user_ids
        data[schema.ITEM].raw_id = reviews.item_ids
        data.split_seed = self.seed
        for modality in self.modalities:
            if modality == 'image':
                image = read_image_features(paths['image'], reviews.item_ids)
                data[schema.ITEM].x_image = torch.from_numpy(image)
            else:
                data[schema.ITEM].x_text = encode_texts(
                    read_sentences(paths['text'], reviews.item_ids),
                    self.text_encoder,
                    self.text_channels,
                    self.log,
                )
        return data

    def _find_source(self, source: str) -> str:
        r"""Tells which source :obj:`'auto'` stands for."""
        check_choice(source, 'source', ('auto', 'mmrec', 'snap'))
        if source != 'auto':
            return source
        inter = f'{self.name.lower()}.inter'
        if osp.exists(osp.join(self.raw_dir, inter)):
            return 'mmrec'
        # Don't start to download gigabytes because of a forgotten or misnamed file.
        raw = Path(self.raw_dir)
        others = sorted([*raw.glob('*.inter'), *raw.glob('*_feat.npy')])
        if others:
            raise FileNotFoundError(
                f"'{inter}' must be in the folder '{self.raw_dir}', as "
                f"'{others[0].name}' is, but is not there. Put it there, or pass "
                f"source='snap' to build the dataset from the files of SNAP."
            )
        return 'snap'

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}(name='{self.name}')"
