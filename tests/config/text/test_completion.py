from pathlib import Path

import pytest
from omegaconf import OmegaConf

from torchtune_lite import catalog
from torchtune_lite.config.text import includes
from torchtune_lite.config.text.completion import complete, laid_over

BASE = """\
# a base
recipe: r

# the model
model:
  _component_: a.b  # which
  rank: 8  # higher learns more
  # how much
  alpha: 16

optimizer:
  _component_: o.p
  fused: True
text: |
  # no comment
  two
flow: {a: 1, b: [1, 2]}  # of two
seed: null  # drawn
"""


def test_comments_and_order_of_both_are_kept():
    own = """\
# mine
include: base
model:
  rank: 64
  # less
  alpha: 3  # mine
  new: 1
optimizer:
  # another
  _component_: o.q
  lr: 1
seed: 3
# at last
more: 2
"""
    assert (
        laid_over(own, BASE)
        == """\
# mine
recipe: r

# the model
model:
  _component_: a.b  # which
  rank: 64  # higher learns more
  # less
  alpha: 3  # mine
  new: 1

optimizer:
  # another
  _component_: o.q
  lr: 1
text: |
  # no comment
  two
flow: {a: 1, b: [1, 2]}  # of two
seed: 3  # drawn
# at last
more: 2
"""
    )


OWN = {
    "braces": "model: {rank: 2, alpha: [1,\n  2]}\nflow: {b: 3}\n",
    "a list": "model: [a, b]\nflow:\n- x: 1\n- y: 2\n",
    "a block text": "text: >\n  a\n\n  b\nmodel:\n    rank: 3\n    deeper:\n        x: 1\n",
    "anchors": "model: &m\n  rank: 3\nflow:\n  <<: *m\n  c: 1\n",
    "quoted keys": '"model":\n  \'rank\': 3\n"seed" : 4\n',
    "empty": "model: {}\n",
    "a long value": "flow: [1,\n  # within\n  2]\ntext: 'a\n  b'\n",
    "no end of line": "model:\n  rank: 3",
    "a document": "---\nmodel:\n  rank: 3\n",
}


@pytest.mark.parametrize("own", OWN)
def test_the_text_has_the_values_of_the_chain(own, folder):
    (folder / "base.yaml").write_text(BASE)
    text = OWN[own]
    first = "---\ninclude: base.yaml\n" + text[4:] if text.startswith("---") else "include: base.yaml\n" + text
    (folder / "my.yaml").write_text(first)
    whole = complete(Path("my.yaml"), "my.yaml")
    assert OmegaConf.to_container(OmegaConf.create(whole)) == includes.read(Path("my.yaml")).values
    assert "include" not in whole


def test_a_text_without_an_include_stays_as_it_is(folder):
    (folder / "my.yaml").write_text(BASE)
    assert complete(Path("my.yaml"), "my.yaml") == BASE


SHIPPED = [name for name, path in catalog.configs().items() if "\ninclude: " in path.read_text()]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_is_shown_whole_with_its_comments(name):
    path = catalog.configs()[name]
    text = complete(path, name)
    values = includes.read(path, name).values
    assert OmegaConf.to_container(OmegaConf.create(text), resolve=False) == values
    assert text.splitlines()[:4] == path.read_text().splitlines()[:4]
    assert text.count("  # ") > 5
