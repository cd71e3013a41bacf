r"""Configuration of the documentation. Every public module gets a page of its own,
written here from its ``__all__``, so that the reference can't go out of date.
"""

import importlib
import os
import pkgutil
from pathlib import Path

from sphinx.util.nodes import make_refnode

import torch_geometric_unlearn as tgu

project = 'torch_geometric_unlearn'
author = 'The torch_geometric_unlearn contributors'
copyright = author
version = release = tgu.__version__

extensions = [
    'sphinx.ext.autodoc',
    'sphinx.ext.autosummary',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
]
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'{project} {version}'

autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_member_order = 'bysource'
autodoc_preserve_defaults = True
autodoc_typehints = 'none'  # The sections 'Args' name the types.
autosummary_generate = False  # The pages below already describe every name.

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [('Shapes', 'notes_style')]
napoleon_use_ivar = True  # Fields of a dataclass would be described twice.

if os.environ.get('DOCS_INTERSPHINX'):  # Needs the network.
    extensions.append('sphinx.ext.intersphinx')
    intersphinx_mapping = {
        'python': ('https://docs.python.org/3', None),
        'torch': ('https://docs.pytorch.org/docs/stable', None),
        'torch_geometric': ('https://pytorch-geometric.readthedocs.io/en/stable', None),
    }


def public_names(module):
    r"""Returns what a module lists as public, or else what it defines and describes."""
    if hasattr(module, '__all__'):
        return module.__all__
    return [
        name
        for name, value in vars(module).items()
        if getattr(value, '__module__', '') == module.__name__ and value.__doc__
    ]


def public_packages():
    r"""Yields every public module with its names, parents first: those that none has
    listed before, and the others.
    """
    seen = set()
    found = pkgutil.walk_packages(tgu.__path__, f'{project}.')
    names = {package.name for package in found if package.ispkg}
    names |= {f'{project}.{x}' for x in tgu.__all__ if not x.startswith('_')}
    for name in sorted(names, key=lambda name: (name.count('.'), name)):
        module = importlib.import_module(name)
        public = [x for x in public_names(module) if not x.startswith('_')]
        own = [x for x in public if id(getattr(module, x)) not in seen]
        seen.update(id(getattr(module, x)) for x in own)
        if own and '._' not in name:
            yield name, own, [x for x in public if x not in own]


def api_pages():
    r"""Returns the text of every page of the reference by its name."""
    pages = {}
    for name, own, other in public_packages():
        pages[name.removeprefix(f'{project}.')] = '\n'.join(
            [
                name,
                '=' * len(name),
                '',
                f'.. currentmodule:: {name}',
                '',
                '.. autosummary::',
                '    :nosignatures:',
                '',
                *(f'    {x}' for x in own),
                '',
                f'.. automodule:: {name}',
                *([f'    :exclude-members: {", ".join(other)}'] if other else []),
                '',
            ]
        )
    return pages


def write_api(app):
    r"""Writes the pages of the reference; one that is up to date is left alone."""
    folder = Path(app.srcdir) / 'api'
    folder.mkdir(exist_ok=True)
    pages = api_pages()
    for path in folder.glob('*.rst'):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / f'{name}.rst'
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def resolve_short_name(app, env, node, contnode):
    r"""Links a name such as ``TRU`` or ``nn.models.ShardEnsemble``, wherever it is
    described, if exactly one public object is called so. The role ``obj`` marks code
    and values, as in PyG, and is left alone.
    """
    if node.get('refdomain') != 'py' or node.get('reftype') == 'obj':
        return None
    target = node.get('reftarget', '')
    if '.' in target and not target.startswith(project):
        return None
    name = target.rpartition('.')[2]
    domain = env.get_domain('py')
    found = [
        x
        for x, entry in domain.objects.items()
        if x.rpartition('.')[2] == name and not entry.aliased
    ]
    if len(found) != 1:
        return None
    entry = domain.objects[found[0]]
    return make_refnode(
        app.builder, node['refdoc'], entry.docname, entry.node_id, contnode, found[0]
    )


def setup(app):
    app.connect('builder-inited', write_api)
    app.connect('missing-reference', resolve_short_name)
