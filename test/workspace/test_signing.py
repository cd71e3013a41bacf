import json
import os
import random
import stat
import sys
from dataclasses import replace
from hashlib import sha256

import pytest
from torch_geometric.testing import onlyLinux, withPackage

from torch_geometric_unlearn.workspace import signing, verify
from torch_geometric_unlearn.workspace.evidence import json_bytes

_ANY = r'\S'  # Some are no longer JSON, others another manifest.


@pytest.fixture
def keys(tmp_path):
    r"""A private key and its public one."""
    folder = tmp_path / 'secrets'
    folder.mkdir()
    return folder / 'key', signing.make_pair(folder / 'key')


@pytest.fixture
def signed(cheap, quick, ask, shop, keys):
    r"""A workspace with a key, and the signed evidence of a job."""
    cheap.settings = replace(cheap.settings, signing_key=str(keys[0]))
    ask(cheap, users=[shop.user(3)])
    [job] = cheap.work(now=True)
    return cheap.evidence(job.id)


@pytest.fixture
def without(monkeypatch):
    r"""A Python without the package."""
    for name in [name for name in sys.modules if name.startswith('cryptography')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'cryptography', None)


@withPackage('cryptography')
def test_a_pair_of_keys(keys, ws, tmp_path):
    private, public = keys
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert b'PRIVATE' in private.read_bytes()
    assert b'PRIVATE' not in public.read_bytes()
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(FileExistsError, match=r"key.pub' exists"):
        signing.make_pair(private)
    assert (private.read_bytes(), public.read_bytes()) == before
    public.unlink()
    with pytest.raises(FileExistsError, match=r"key' exists"):
        signing.make_pair(private)
    assert private.read_bytes() == before[0]
    assert not public.exists()
    (ws.root / 'sub').mkdir()
    for name in ('key', 'sub/key'):
        with pytest.raises(ValueError, match='outside of the workspace'):
            signing.make_pair(ws.root / name)
        assert not (ws.root / name).exists()


@withPackage('cryptography')
def test_a_signed_bundle(signed, keys):
    assert verify(signed)['signature'] == 'not checked'
    assert verify(signed, keys[1])['signature'] == 'valid'
    assert str(keys[0]) not in (signed / 'lineage.json').read_text()
    other = signing.make_pair(keys[0].with_name('other'))
    with pytest.raises(ValueError, match='signed with another key'):
        verify(signed, other)
    for wrong in (keys[0], signed / 'limits.txt'):
        with pytest.raises(ValueError, match='holds no public Ed25519 key'):
            verify(signed, wrong)
    with pytest.raises(FileNotFoundError):
        verify(signed, signed / 'nothing')


@withPackage('cryptography')
def test_a_relative_key_is_of_the_workspace(cheap, keys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / 'secrets')
    for path in ('key', '../secrets/key'):
        cheap.settings = replace(cheap.settings, signing_key=path)
        if path == 'key':
            with pytest.raises(ValueError, match="'signing_key' must lie outside"):
                signing.signer(cheap.root, cheap.settings)
        else:
            assert signing.signer(cheap.root, cheap.settings) is not None


@withPackage('cryptography')
def test_any_changed_byte_of_a_signed_bundle_is_found(signed, keys):
    rng = random.Random(0)
    for path in sorted(signed.iterdir()):
        content = path.read_bytes()
        is_small = path.name.startswith('manifest')
        places = range(len(content)) if is_small else rng.sample(range(len(content)), 4)
        for place in places:
            changed = bytearray(content)
            changed[place] ^= 1 << rng.randrange(8)
            path.write_bytes(bytes(changed))
            with pytest.raises(ValueError, match=_ANY):
                verify(signed)
        for changed in (content[:-1], content + b'\n', b''):
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=_ANY):
                verify(signed, keys[1])
        path.write_bytes(content)
    assert verify(signed, keys[1])['signature'] == 'valid'


@withPackage('cryptography')
def test_forged_signatures_are_found(signed, keys):
    manifest, path = signed / 'manifest.json', signed / 'manifest.sig'
    before = manifest.read_bytes(), path.read_bytes()

    def restore():
        manifest.write_bytes(before[0])
        path.write_bytes(before[1])

    path.unlink()  # Claimed, but not there.
    for key in (None, keys[1]):
        with pytest.raises(ValueError, match=r"must hold the files .*'manifest.sig'"):
            verify(signed, key)
    # Neither claimed nor there.
    content = json.loads(before[0])
    del content['signed_by']
    manifest.write_bytes(json_bytes(content))
    assert verify(signed)['signature'] == 'none'
    with pytest.raises(ValueError, match='is not signed, but must be'):
        verify(signed, keys[1])
    restore()
    # Other content, and a digest that fits; only the key tells.
    content = json.loads(before[0])
    text = (signed / 'limits.txt').read_bytes() + b'none\n'
    (signed / 'limits.txt').write_bytes(text)
    content['files']['limits.txt'] = sha256(text).hexdigest()
    manifest.write_bytes(json_bytes(content))
    with pytest.raises(ValueError, match='is not the signature that'):
        verify(signed)
    entry = json.loads(before[1])
    digest = sha256(manifest.read_bytes() + entry['signature'].encode()).hexdigest()
    path.write_bytes(json_bytes(entry | {'digest': digest}))
    assert verify(signed)['signature'] == 'not checked'
    with pytest.raises(ValueError, match='signature of the evidence is wrong'):
        verify(signed, keys[1])
    # Another key, under the name of this one.
    signing.make_pair(keys[0].with_name('other'))
    other = load_private(keys[0].with_name('other'))
    path.write_bytes(json_bytes(signing.sign(other, manifest.read_bytes())))
    assert verify(signed)['signature'] == 'not checked'
    with pytest.raises(ValueError, match='signature of the evidence is wrong'):
        verify(signed, keys[1])


def load_private(path):
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return load_pem_private_key(path.read_bytes(), None)


@withPackage('cryptography')
def test_a_signature_of_other_software_is_the_same(signed, keys):
    r"""It is what RFC 8032 says, over the bytes of the manifest."""
    entry = json.loads((signed / 'manifest.sig').read_text())
    content = (signed / 'manifest.json').read_bytes()
    assert load_private(keys[0]).sign(content).hex() == entry['signature']


@withPackage('cryptography')
def test_keys_that_can_not_sign(cheap, ask, shop, keys, tmp_path):
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    ask(cheap, users=[shop.user(3)])
    other = tmp_path / 'secrets' / 'x25519'
    form = forms.Encoding.PEM, forms.PrivateFormat.PKCS8
    text = X25519PrivateKey.generate().private_bytes(*form, forms.NoEncryption())
    other.write_bytes(text)
    locked, lock = tmp_path / 'secrets' / 'locked', forms.BestAvailableEncryption(b'a')
    locked.write_bytes(load_private(keys[0]).private_bytes(*form, lock))
    inside = cheap.root / 'key'
    inside.write_bytes(keys[0].read_bytes())
    for path in (other, locked, inside):
        path.chmod(0o600)
    for path, error, match in (
        (tmp_path / 'none', FileNotFoundError, "no key '.*none' to sign evidence"),
        (keys[1], PermissionError, 'chmod 600'),
        (other, ValueError, 'holds no private Ed25519 key'),
        (locked, ValueError, 'without a password'),
        (inside, ValueError, "'signing_key' must lie outside"),
    ):
        cheap.settings = replace(cheap.settings, signing_key=str(path))
        with pytest.raises(error, match=match):  # Before anything is done.
            cheap.work(now=True)
        assert cheap.status()['requests'] == {'queued': 1}


@onlyLinux
def test_without_the_package(cheap, ask, shop, tmp_path, without):
    with pytest.raises(ImportError, match=r'torch_geometric_unlearn\[sign\]'):
        signing.make_pair(tmp_path / 'key')
    assert not (tmp_path / 'key').exists()
    ask(cheap, users=[shop.user(3)])
    cheap.settings = replace(cheap.settings, signing_key=str(tmp_path / 'key'))
    with pytest.raises(ImportError, match="A signature needs 'cryptography'"):
        cheap.work(now=True)
    assert cheap.status()['requests'] == {'queued': 1}


@withPackage('cryptography')
def test_verify_without_the_package(signed, keys, without):
    assert verify(signed)['signature'] == 'not checked'
    with pytest.raises(ImportError, match=r'torch_geometric_unlearn\[sign\]'):
        verify(signed, keys[1])


@withPackage('cryptography')
def test_a_killed_bundle_is_written_again(signed, keys, cheap, monkeypatch, clock):
    r"""Files, signature and manifest are of one time, once the doctor has come."""
    (job,) = (row['id'] for row in cheap.ledger.rows('SELECT id FROM job'))
    clock.wait(30)
    cheap.work()
    clock.wait(8)
    cheap.work()
    assert verify(signed, keys[1])['verdict'] == 'pass'
    replaced = []

    def stop(source, target):
        replaced.append(target)
        if str(target).endswith('manifest.sig'):
            raise KeyboardInterrupt
        return original(source, target)

    original = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', stop)
        with pytest.raises(KeyboardInterrupt):
            cheap.evidence(job)
    with pytest.raises(ValueError, match=r"'manifest\.sig'"):
        verify(signed, keys[1])
    assert f'wrote evidence/{job}' in cheap.doctor()
    assert verify(signed, keys[1])['signature'] == 'valid'
    assert cheap.doctor() == []
