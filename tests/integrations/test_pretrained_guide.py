"""The guide to pre-trained models, with a small model of the same kind that needs no download."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

# What these packages warn of is not about this one.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]

GUIDE = Path(__file__).parents[2] / "docs" / "pretrained.md"
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a and another dull film fine go it never one see sentence"


def save_small_model(folder: Path) -> None:
    """Save a model and its tokenizer as people download them."""
    folder.mkdir()
    (folder / "vocab.txt").write_text(WORDS.replace(" ", "\n"))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS.split()),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    transformers.BertModel(config).save_pretrained(folder)


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_small_model(tmp_path / "model")
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL))
    program, replaced = re.subn(r'^NAME = ".*"$', f"NAME = {str(tmp_path / 'model')!r}", program, flags=re.MULTILINE)
    assert replaced == 1
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(program, str(GUIDE), "exec"), names)
    assert (tmp_path / "films.hat").exists()
    net = names["net"]
    assert net.units.groups  # of LoRA, the last one
