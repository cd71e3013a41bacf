r"""Signatures under evidence: Ed25519, if there is a key."""

from __future__ import annotations

import os
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch_geometric_unlearn.utils.optional import import_optional

if TYPE_CHECKING:
    from .settings import Settings

ALGORITHM = 'Ed25519'


def make_pair(path: str | os.PathLike[str]) -> Path:
    r"""Writes a new private key that only its owner may read, and the public key beside
    it, as :obj:`<path>.pub`, which it returns; both as PEM.

    Args:
        path (str or Path): Where the private key goes, outside of any workspace.

    Raises:
        FileExistsError: If one of the files exists.
        ImportError: If cryptography is missing.
        ValueError: If it lies in a workspace.
    """
    crypto = _crypto()
    private, public = Path(path), Path(f'{os.fspath(path)}.pub')
    for folder in private.resolve().parents:
        if (folder / 'workspace.json').is_file():
            raise ValueError(
                f"The key must lie outside of the workspace '{folder}', or whoever "
                f'gets the folder can sign in your name. Choose another place.'
            )
    if public.exists():  # Before a key that nobody could check is made.
        raise FileExistsError(f"'{public}' exists. Choose another name.")
    key, forms = crypto.Ed25519PrivateKey.generate(), crypto.forms
    text = key.private_bytes(
        forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()
    )
    _create(private, text, 0o600)
    text = key.public_key().public_bytes(
        forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo
    )
    _create(public, text, 0o644)
    return public


def _create(path: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise FileExistsError(f"'{path}' exists. Choose another name.") from None
    with os.fdopen(descriptor, 'wb') as file:
        file.write(content)


def signer(root: Path, settings: Settings) -> Any:
    r"""Returns the private key of a workspace, or nothing if its settings name none.

    Args:
        root (Path): The workspace, which need not exist.
        settings (Settings): Its settings.

    Raises:
        ImportError: If cryptography is missing.
        FileNotFoundError: If there is no such file.
        PermissionError: If others may read it.
        ValueError: If it is no private Ed25519 key, or lies in the workspace.
    """
    if not settings.signing_key:
        return None
    path = root / settings.signing_key  # Not of where it is called.
    if root.resolve() in path.resolve().parents:
        raise ValueError(
            f"'signing_key' must lie outside of the folder (got '{path}'), or whoever "
            f'gets the folder can sign in your name.'
        )
    crypto = _crypto()
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no key '{path}' to sign evidence with. Bring it back from where "
            f"you keep secrets, or make another one with 'tgu keygen' and name it as "
            f"'signing_key' in 'workspace.json'."
        ) from None
    if os.name == 'posix' and path.stat().st_mode & 0o077:
        raise PermissionError(
            f"Others may read the private key '{path}'. Change that with 'chmod 600'; "
            f'if they have, make another one.'
        )
    try:
        key = crypto.forms.load_pem_private_key(text, password=None)
    except (TypeError, ValueError, crypto.UnsupportedAlgorithm):
        key = None
    if not isinstance(key, crypto.Ed25519PrivateKey):
        raise ValueError(
            f"'{path}' holds no private {ALGORITHM} key as PEM without a password. "
            f"Make one with 'tgu keygen'."
        )
    return key


def fingerprint(key: Any) -> str:
    r"""Returns the SHA-256 of a public key, or of that of a private key."""
    forms = _crypto().forms
    public = key.public_key() if hasattr(key, 'public_key') else key
    raw = public.public_bytes(forms.Encoding.Raw, forms.PublicFormat.Raw)
    return sha256(raw).hexdigest()


def sign(key: Any, content: bytes) -> dict[str, str]:
    r"""Returns the signature of some content with a private key. The digest shows a
    change to whoever has no key.
    """
    signature = key.sign(content).hex()
    return {
        'algorithm': ALGORITHM,
        'digest': _digest(content, signature),
        'signature': signature,
    }


def check_digest(entry: dict[str, str], content: bytes, name: str) -> None:
    r"""Raises unless a signature belongs to some content, which needs no key."""
    if (
        set(entry) != {'algorithm', 'digest', 'signature'}
        or entry['algorithm'] != ALGORITHM
        or entry['digest'] != _digest(content, entry['signature'])
    ):
        raise ValueError(
            f"'{name}' is not the signature that the evidence was written with"
        )


def check(
    entry: dict[str, str], content: bytes, signed_by: str, public_key: str | Path
) -> None:
    r"""Raises unless some content was signed with the private key that belongs to a
    public one.

    Args:
        entry (dict): What :meth:`sign` has returned.
        content (bytes): What was signed.
        signed_by (str): The fingerprint that the content names.
        public_key (str or Path): The file of the public key.

    Raises:
        ImportError: If cryptography is missing.
        ValueError: If it was signed by another key or not at all, or the file holds no
            public key.
    """
    crypto = _crypto()
    try:
        key = crypto.forms.load_pem_public_key(Path(public_key).read_bytes())
    except (ValueError, crypto.UnsupportedAlgorithm):
        key = None
    if not isinstance(key, crypto.Ed25519PublicKey):
        raise ValueError(f"'{public_key}' holds no public {ALGORITHM} key as PEM")
    if fingerprint(key) != signed_by:
        raise ValueError(
            f"The evidence was signed with another key than that of '{public_key}'"
        )
    try:
        key.verify(bytes.fromhex(entry['signature']), content)
    except (ValueError, crypto.InvalidSignature):
        raise ValueError('The signature of the evidence is wrong') from None


def _digest(content: bytes, signature: str) -> str:
    return sha256(content + signature.encode()).hexdigest()


def _crypto() -> SimpleNamespace:
    r"""Returns the few names of the package that are needed."""
    import_optional('cryptography', 'A signature', 'sign')
    base = 'cryptography.hazmat.primitives'
    keys = import_module(f'{base}.asymmetric.ed25519')
    errors = import_module('cryptography.exceptions')
    return SimpleNamespace(
        Ed25519PrivateKey=keys.Ed25519PrivateKey,
        Ed25519PublicKey=keys.Ed25519PublicKey,
        InvalidSignature=errors.InvalidSignature,
        UnsupportedAlgorithm=errors.UnsupportedAlgorithm,
        forms=import_module(f'{base}.serialization'),
    )
