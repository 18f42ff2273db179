import json
from pathlib import Path

import pytest

from torchtune_lite.data.tokenizers.files import added_tokens, guard, leads_out, prepend_scheme, read_json
from torchtune_lite.errors import DataError


@pytest.mark.parametrize("content", ["{", "[1]", '"text"'])
def test_a_json_file_must_hold_an_object(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(DataError, match=r"config\.json .*fetch the file again"):
        read_json(tmp_path / "config.json")


def test_no_file_is_an_empty_object(tmp_path):
    assert read_json(None) == read_json(tmp_path / "config.json") == {}


def test_added_tokens_stand_in_either_of_two_files(tmp_path):
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<old>": 7}))
    assert added_tokens(tmp_path, {}) == {"<old>": 7}
    assert added_tokens(tmp_path, {"added_tokens_decoder": {"8": {"content": "<new>"}}}) == {"<new>": 8}


@pytest.mark.parametrize(
    ("config", "scheme"),
    [({}, "first"), ({"legacy": True}, "always"), ({"legacy": None}, "first"), ({"add_prefix_space": False}, "never")],
)
def test_where_a_space_is_put_before_a_chat(config, scheme):
    assert prepend_scheme(config) == scheme


def test_a_guard_joins_with_no_other_character():
    assert guard(["a", "\n", "▁"]) == "\n"
    assert guard(["a", "\n", "\n\n"]) == guard([" \n"]) == "\ue000"


def test_a_link_leads_out_of_its_folder_unless_to_a_blob_of_the_hubs_cache(tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    blobs, plain = snapshot.parent.parent / "blobs", tmp_path / "plain"
    for folder in (snapshot, blobs, plain):
        folder.mkdir(parents=True)
    (blobs / "0").touch()
    for name, target, out in (
        ("file", None, None),
        ("inside", "file", None),
        ("blob", blobs / "0", None),
        ("above", "../..", snapshot.parent.parent),
        ("absolute", "/etc/hostname", Path("/etc/hostname").resolve()),
    ):
        file = snapshot / name
        file.symlink_to(target) if target else file.touch()
        assert leads_out(file) == out, name
    (plain / "blob").symlink_to(blobs / "0")
    assert leads_out(plain / "blob") == blobs / "0"
