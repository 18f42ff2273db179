"""What is built is kept, and a source or a header that changes is built anew."""

import shutil

import pytest

from torchtune_lite.kernels.native import build

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    path = tmp_path / "loops.cpp"
    path.write_text('#include "numbers.h"\nextern "C" int answer() { return 42; }\n')
    return path


def built(tmp_path):
    return sorted(path.name for path in (tmp_path / "extensions" / "torchtune_lite").iterdir())


def test_a_library_is_built_once_for_each_text(source, tmp_path):
    assert build.load(source).answer() == 42
    [first] = built(tmp_path)
    assert build.load(source).answer() == 42 and built(tmp_path) == [first]
    source.write_text(source.read_text().replace("42", "43"))
    assert build.load(source).answer() == 43 and len(built(tmp_path)) == 2


def test_a_header_that_changes_counts(source, tmp_path, monkeypatch):
    build.load(source)
    monkeypatch.setattr(build, "HEADER", tmp_path / "numbers.h")
    build.HEADER.write_text("#pragma once\n")
    build.load(source)
    assert len(built(tmp_path)) == 2


def test_a_source_that_is_wrong_is_no_library(source):
    source.write_text("this is no C++")
    assert build.load(source) is None


@pytest.mark.parametrize(("value", "wanted"), [(None, True), ("1", True), ("0", False)])
def test_it_can_be_switched_off(value, wanted, monkeypatch):
    monkeypatch.delenv("TORCHTUNE_LITE_NATIVE", raising=False)
    if value is not None:
        monkeypatch.setenv("TORCHTUNE_LITE_NATIVE", value)
    assert build.is_wanted() == wanted
