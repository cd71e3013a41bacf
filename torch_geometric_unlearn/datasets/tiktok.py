from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets._mmrec import (
    check_files,
    check_modalities,
    read_mmrec,
)
from torch_geometric_unlearn.datasets._stored import StoredDataset
from torch_geometric_unlearn.utils.check import check_bool


class TikTok(StoredDataset):
    r"""The TikTok micro-video dataset with image, audio and text features of the
    videos, in the form used by the `"Multi-Modal Self-Supervised Learning for
    Recommendation" <https://arxiv.org/abs/2302.10632>`_ paper: 9,308 users, 6,710
    items and 68,722 interactions.

    There is no public address to download it from. Put these files into the folder
    :obj:`<root>/raw`:

    * :obj:`tiktok.inter`: tab-separated with a header; columns :obj:`userID`,
      :obj:`itemID` (0-based) and :obj:`x_label` (0 train, 1 validation, 2 test) in
      any order, optional :obj:`rating` and :obj:`timestamp`, others are skipped. The
      numbers of users and items are the largest ids plus one over the whole file.
    * :obj:`image_feat.npy`, :obj:`audio_feat.npy`, :obj:`text_feat.npy`: one row per
      item, of any width; only those of :obj:`modalities`.

    Held-out interactions of users without a training interaction are dropped: those
    of five validation and five test users.

    Args:
        root (str): Root directory of the dataset.
        modalities (tuple[str], optional): Which of :obj:`"image"`, :obj:`"audio"` and
            :obj:`"text"` to load. (default: :obj:`("image", "audio")`)
        transform (callable, optional): A transform applied before every access.
            (default: :obj:`None`)
        pre_transform (callable, optional): A transform applied before saving. All
            that it consists of, code and attributes, decides on the processed file's
            name. (default: :obj:`None`)
        force_reload (bool, optional): Whether to process the raw files again, e.g.
            after replacing one. (default: :obj:`False`)
        log (bool, optional): Whether to print the progress. (default: :obj:`True`)

    Shapes:
        - **x_image, x_audio, x_text:** :math:`(N_{item}, F)`, float32
        - **edge_index:** :math:`(2, E)` training interactions, int64
        - **val_edge_label_index, test_edge_label_index:** :math:`(2, *)`, int64

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged or breaks its format; names the file and, for
            :obj:`tiktok.inter`, the line.
        OSError: If :obj:`root` can't be written.

    Example:
        .. code-block:: python

            dataset = TikTok('data/TikTok', modalities=('audio',))
            data = dataset[0]
            data['item'].x_audio.shape  # torch.Size([6710, 128])
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        modalities: Sequence[str] = ('image', 'audio'),
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
        force_reload: bool = False,
        log: bool = True,
    ) -> None:
        self.modalities = check_modalities(modalities, ('image', 'audio', 'text'))
        super().__init__(
            os.fspath(root),
            transform,
            pre_transform,
            log=check_bool(log, 'log'),
            force_reload=check_bool(force_reload, 'force_reload'),
        )
        self.load(self.processed_paths[0], data_cls=HeteroData)

    @property
    def raw_file_names(self) -> list[str]:
        features = [f'{modality}_feat.npy' for modality in self.modalities]
        return ['tiktok.inter', *features]

    @property
    def processed_file_names(self) -> str:
        return self.processed_name('mmrec', '-'.join(self.modalities) or 'none')

    def download(self) -> None:
        check_files(
            self.raw_dir,
            self.raw_file_names,
            'There is no public address to download the dataset from.',
        )

    def process(self) -> None:
        data = read_mmrec(self.raw_dir, 'tiktok', self.modalities)
        if self.pre_transform is not None:
            data = self.pre_transform(data)
        self.save([schema.validate(data)], self.processed_paths[0])
