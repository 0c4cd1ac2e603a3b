"""An adapter that was trained on a model goes on the same model in fewer bits, and on no other."""

from pathlib import Path

import peft
import pytest
from transformers import LlamaForCausalLM

from quickmatch.core.errors import ModelLoadError
from quickmatch.core.settings import Home
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.fingerprint import write_base_fingerprint
from quickmatch.engine.runner import ModelRunner
from quickmatch.store.documents import Model
from quickmatch.store.open import open_store
from quickmatch.store.protocol import require
from tests.unit.cli.conftest import Run
from tests.unit.cli.tiny_model import make_tiny_model

# peft 0.21 asks transformers for a property that transformers 5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


def test_an_adapter_goes_on_its_base_in_fewer_bits(run: Run, home: Home, tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", seed=1)
    other = make_tiny_model(tmp_path / "other", seed=2)
    adapter = tmp_path / "red"
    model = LlamaForCausalLM.from_pretrained(base)
    peft.get_peft_model(model, peft.LoraConfig(r=2)).save_pretrained(adapter)
    write_base_fingerprint(adapter, base)
    text = tmp_path / "text.txt"
    text.write_text("It is a plain text of a few words. " * 8, encoding="utf-8")
    for source in (base, other):
        made = ["--to", "int8", "--out", f"{source}-int8", "--held-out", str(text)]
        assert run("quantize", str(source), *made).code == 0
        for folder in (source, Path(f"{source}-int8")):
            result = run("create", "model", folder.name, "--path", str(folder))
            assert result.code == 0, result.err
    run("create", "model", "red", "--path", str(adapter), "--base-model", "base")

    for name in ("base-int8", "other-int8"):
        assert run("deploy", name, "--no-wait").code == 0
    assert run("load-lora", "red", "--deployment", "base-int8", "--no-wait").code == 0
    refused = run("load-lora", "red", "--deployment", "other-int8", "--no-wait")
    assert refused.code == 2
    assert "was trained on 'base'" in refused.err

    store = open_store(home)
    quantized, red = require(store, Model, "base-int8"), require(store, Model, "red")
    assert quantized.quantized_from == "base"
    assert red.is_made_for(quantized)
    assert not red.is_made_for(require(store, Model, "other-int8"))
    ModelRunner(EngineConfig(model=f"{base}-int8")).read_adapter(str(adapter))
    with pytest.raises(ModelLoadError, match="another base model"):
        ModelRunner(EngineConfig(model=f"{other}-int8")).read_adapter(str(adapter))
