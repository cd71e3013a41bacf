import re
from html.parser import HTMLParser

from torch_geometric_unlearn.report import build_report
from torch_geometric_unlearn.report.html import render_html
from torch_geometric_unlearn.unlearn import EdgeDrop


class Page(HTMLParser):
    r"""Checks that tags are balanced, and collects what the tests look at."""

    VOID = ('meta', 'br', 'link', 'img', 'input')

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.hints = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs).get('class')))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, text):
        if ('style', None) not in self.open:
            hidden = ('details', 'maker') in self.open
            (self.hints if hidden else self.text).append(text)

    def find(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_failures_are_shown_with_their_reason(full):
    (failure,) = full['failures']
    assert failure['where'] == 'backdoor of unlearned'
    assert 'no plant' in failure['reason']
    assert 'RuntimeError' in ''.join(Page(render_html(full)).text)


def test_what_to_pass_is_told_to_the_maker(inputs):
    text = render_html(build_report(EdgeDrop()(inputs['original'], inputs['data'])))
    assert not re.search(r'(https?:)?//[a-z]', text)
    page = Page(text)
    notes = [a.get('class') for a in page.find('p')]
    assert notes.count('missing') == 4  # Table, request, scores and exposure.
    assert notes.count('note') >= 4
    # What to write in Python is told to those who do, not to every reader.
    hints = ''.join(page.hints)
    assert hints.startswith('For the person who made this report')
    assert "audits={'membership': {'unlearned': ...}}" in hints
    assert "pass 'data', 'original', 'retrained' and 'controls'" in hints
    assert not re.search(r"[Pp]ass |'data'|[{}]", ''.join(page.text))


def test_page_is_self_contained_and_accessible(full):
    text = render_html(full)
    page = Page(text)
    (html,) = page.find('html')
    assert html['lang'] == 'en'
    assert len(page.find('title')) == len(page.find('h1')) == 1
    for tag in ('script', 'link', 'img', 'iframe', 'object'):
        assert not page.find(tag)
    assert not re.search(r'(https?:)?//[a-z]', text)
    assert not re.search(r'\son[a-z]+="', text)
    assert 'url(#hatch)' in text or 'url(' not in text
    plots = [a for a in page.find('svg') if a.get('role') == 'img']
    assert len(plots) >= 7
    assert all(a['aria-label'] for a in plots)
    assert text.count('How to read it.') >= 6
    assert all('scope' in a for a in page.find('th'))
    assert 'prefers-color-scheme:dark' in text
    assert '@media print' in text
    ids = [a['id'] for _, a in page.tags if 'id' in a]
    assert len(ids) == len(set(ids))


HOSTILE = '</style><script src="//x.org/a.js">\'"&amp;</script><img onload="x()">'


def poison(value):
    r"""Returns content with something hostile after every text but those that choose
    what is shown.
    """
    if isinstance(value, dict):
        codes = ('status', 'role', 'ids', 'columns', 'needs')
        return {k: v if k in codes else poison(v) for k, v in value.items()}
    if isinstance(value, list):
        return [poison(entry) for entry in value]
    return value + HOSTILE if isinstance(value, str) else value


def test_strings_are_escaped(full):
    content = poison(full)
    audits = content['audits']
    close = audits['closeness']['models']['unlearned']
    content['table']['rows'][0]['errors'] = {'ranking': HOSTILE, 'exposure': HOSTILE}
    for section in ('modules', 'scores', 'exposure'):
        content[section] |= {'error': HOSTILE, 'missing': HOSTILE}
    for names in (
        *(content[x] for x in ('settings', 'sizes', 'masks', 'versions', 'audits')),
        content['method']['settings'],
        content['verdict']['tolerance'],
        content['branches']['scales'],
        content['scores']['models'],
        content['exposure']['values'],
        *content['request']['subjects'],
        *(audit['models'] for audit in audits.values()),
        audits['backdoor']['models']['retrained'],
        *(close[x] for x in ('value', 'branch_cka')),
    ):
        names |= {f'{name}{HOSTILE}': value for name, value in names.items()}
    text, clean = render_html(content), Page(render_html(full))
    page = Page(text)
    for tags in (page.tags, clean.tags):
        tags[:] = [(tag, tuple(attrs)) for tag, attrs in tags]
    extra = set(page.tags) - set(clean.tags)
    assert extra <= {('span', ('class', 'title'))}  # Why a measurement failed.
    assert ''.join(page.text).count(HOSTILE) > 100
    assert not re.search('<script|<img|</style><', text.replace('</style></head>', ''))


def test_a_section_says_why_it_failed(full):
    errors = {
        name: {'missing': '', 'needs': [], 'error': f'E: no {name}'}
        for name in ('scores', 'exposure')
    }
    text = ''.join(Page(render_html(full | errors)).text)
    for section in errors:
        assert f'Failed: E: no {section}' in text
