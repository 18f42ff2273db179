import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from torchtune_lite.checkpoint import gather
from torchtune_lite.models.llama import LLAMA


def test_a_state_is_three_files_without_pickle(tmp_path: Path):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).bfloat16()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[1].parameters(), lr=torch.tensor(0.5))
    model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    gather(model, optimizer, None, {"global_step": 1, "seed": 7}).write(tmp_path / "resume", LLAMA)

    files = sorted(path.name for path in (tmp_path / "resume").iterdir())
    assert files == ["optimizer.safetensors", "rng.json", "trainer.json"]
    tensors = load_file(tmp_path / "resume" / "optimizer.safetensors")
    state = optimizer.state[model[1].weight]
    assert tensors.keys() == {f"1.{p}/{key}" for p in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")}
    for key, value in state.items():
        saved = tensors[f"1.weight/{key}"]
        assert saved.dtype == value.dtype and torch.equal(saved, value)
    trainer = json.loads((tmp_path / "resume" / "trainer.json").read_text())
    assert trainer["trained"] == {"1.weight": ["bfloat16", [1, 2]], "1.bias": ["bfloat16", [1]]}
    assert (trainer["family"], trainer["progress"]) == ("llama", {"global_step": 1, "seed": 7})
    assert trainer["lr_scheduler"] == {"class": None, "state": None}
    [group] = trainer["optimizer"]["groups"]
    assert (group["lr"], group["params"]) == (0.5, ["1.weight", "1.bias"])
    assert "torch" in json.loads((tmp_path / "resume" / "rng.json").read_text())
