"""Study files: what is refused and in which words, paths, and the round trip."""

from pathlib import Path

import pytest

from autocompress.config import DATA_ENVIRONMENT_VARIABLE, StudyConfig, load_study, parse_duration, to_toml
from autocompress.errors import ConfigError

STUDY = {
    "study": 'name = "digits"\ntrials = 5',
    "model": 'source = "torchvision:resnet18"',
    "data": 'source = "sklearn:digits"',
}


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_ENVIRONMENT_VARIABLE, raising=False)


def _write(folder: Path, **sections: str) -> Path:
    path = folder / "study.toml"
    content = STUDY | sections
    path.write_text("\n".join(f"[{name}]\n{body}" for name, body in content.items()))
    return path


def _load(folder: Path, **sections: str) -> StudyConfig:
    return load_study(_write(folder, **sections))


def _message(folder: Path, **sections: str) -> str:
    with pytest.raises(ConfigError) as caught:
        _load(folder, **sections)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("30m", 1800.0), ("1.5h", 5400.0), ("2", 2.0), (" 3 m ", 180.0), (45, 45.0), (0.5, 0.5)],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-5m", "5 days", "m", "1h30m", "nan", "inf"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="a duration is a positive number"):
        parse_duration(text)


def test_timeout_in_seconds(tmp_path: Path) -> None:
    assert _load(tmp_path, study='name = "a"\ntimeout = "2m"').study.timeout_s == 120.0
    assert _load(tmp_path, study='name = "a"\ntimeout = 7').study.timeout_s == 7.0
    assert _load(tmp_path).study.timeout_s is None


# What is refused


@pytest.mark.parametrize(
    ("section", "body", "parts"),
    [
        ("study", 'name = "a"\ntrial = 5', ["unknown key study.trial", "did you mean trials?"]),
        (
            "training",
            "learning_rte = 1",
            ["unknown key training.learning_rte", "did you mean learning_rate?"],
        ),
        ("spice", "base = true", ["unknown key spice", "did you mean space?"]),
        ("baseline", "zzz = 1", ["unknown key baseline.zzz", "known here: train, steps, learning_rate"]),
        ("study", 'name = "a"\ntrials = "many"', ["study.trials", "valid integer", "got 'many'", "correct"]),
        ("study", 'name = "a"\ntrials = 0', ["study.trials", "greater than or equal to 1", "got 0"]),
        ("study", 'name = "a"', ["a study needs an end", "give trials, timeout or both"]),
        ("study", "trials = 1", ["study.name is required", "add it"]),
        ("study", 'name = "a"\ntimeout = "soon"', ["study.timeout:", "positive number", "got 'soon'"]),
        ("study", 'name = "a"\ntimeout = [1]', ["study.timeout:", "got [1]"]),
        ("study", 'name = "a"\ntrials = 1\nsampler = "tp"', ["study.sampler", "'tpe', 'nsga2'", "got 'tp'"]),
        (
            "study",
            'name = "a"\ntrials = 1\nseed = -1',
            ["study.seed", "greater than or equal to 0", "got -1"],
        ),
        ("model", 'source = "a:b"\narguments = 3', ["model.arguments", "must be a table", "got 3"]),
        ("data", 'source = "a"\nmean = "x"\nstd = [1]', ["data.mean", "must be a list", "got 'x'"]),
        ("data", 'source = "a"\nmean = [nan]\nstd = [1]', ["data.mean.0", "finite number", "got nan"]),
        ("data", 'source = "a"\nmean = [0.5]', ["mean and std go together", "both or neither"]),
        ("data", 'source = "a"\nmean = [1]\nstd = [0]', ["std is positive", "got [0.0]"]),
        ("data", 'source = "a"\ntest_fraction = 0.5', ["data.test_fraction", "less than 0.5", "got 0.5"]),
        ("training", "learning_rate = inf", ["training.learning_rate", "finite number", "got inf"]),
        ("space", "sparsity = [0.0, 1.0]", ["space.sparsity.1", "less than 1", "got 1.0"]),
        ("space", "sparsity = [0.5, 0.5]", ["sparsity lists", "each once", "got ['0.5', '0.5']"]),
        ("space", 'precision = ["w9"]', ["space.precision.0", "'float32'", "got 'w9'"]),
        ("space", "base = false", ["a space needs a family", "base = true"]),
        ("space", "alpha = [0.5, 2]", ["alpha lies in [0, 1]", "got [0.5, 2.0]"]),
        ("space", "temperature = [3, 1]", ["space.temperature", "low <= high", "got [3.0, 1.0]"]),
        ("space", "temperature = [nan, nan]", ["space.temperature.0", "finite number"]),
        ("limits", "max_size_ratio = 2", ["limits.max_size_ratio", "less than or equal to 1", "got 2"]),
        ("objective", "size_weight = 0\nlatency_weight = 0", ["size_weight and latency_weight"]),
        ("target", 'runtime = "tvm"', ["target.runtime", "'onnxruntime'", "got 'tvm'"]),
    ],
)
def test_a_bad_value_gets_one_line_with_the_file_the_place_and_the_rule(
    tmp_path: Path, section: str, body: str, parts: list[str]
) -> None:
    message = _message(tmp_path, **{section: body})
    assert message.startswith(f"{tmp_path / 'study.toml'}: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "name", ["..", ".", "../up", "a/b", "/etc", "a\\\\b", "", " a", "a\\n", "~", ".hidden", "x" * 101]
)
def test_a_name_cannot_leave_the_run_folder(tmp_path: Path, name: str) -> None:
    message = _message(tmp_path, study=f'name = "{name}"\ntrials = 1')
    assert "study.name: a study name has letters" in message


@pytest.mark.parametrize("name", ["digits", "a.b-c_1", "7", "x" * 100])
def test_plain_names_pass(tmp_path: Path, name: str) -> None:
    assert _load(tmp_path, study=f'name = "{name}"\ntrials = 1').study.name == name


def test_a_section_that_is_missing_or_no_table(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('[study]\nname = "a"\ntrials = 1\n[model]\nsource = "a:b"\n')
    with pytest.raises(ConfigError, match=r"data is required; add it$"):
        load_study(path)
    path.write_text(path.read_text() + '[dta]\nsource = "c:d"\n')
    with pytest.raises(ConfigError, match=r"unknown key dta; did you mean data\?$"):
        load_study(path)
    path.write_text("data = 3\n" + path.read_text().partition("[dta]")[0])
    with pytest.raises(ConfigError, match=r"data: this must be a table; got 3; correct it$"):
        load_study(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be readable; .*none.toml: No such file .*; check the path$"):
        load_study(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = \n")
    with pytest.raises(ConfigError, match=r"is TOML; .*broken.toml: .*line 1.*; correct that place$"):
        load_study(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is TOML"):
        load_study(broken)


# Overrides and paths


def test_the_command_line_overrides_what_it_gives(tmp_path: Path) -> None:
    path = _write(tmp_path, study='name = "a"\ntrials = 5\nseed = 1')
    config = load_study(path, overrides={"seed": 7, "trials": None, "timeout": "1m"})
    assert (config.study.seed, config.study.trials, config.study.timeout_s) == (7, 5, 60.0)


def test_relative_paths_are_relative_to_the_study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies").mkdir()
    monkeypatch.chdir("/")
    config = _load(
        tmp_path / "studies",
        model='source = "../spaces/net.py:build"\nweights = "../net.weights"',
        data='source = "imagefolder:images"',
        space='model_space = "../spaces/net.py:Space"',
    )
    assert config.model.source == f"{tmp_path}/spaces/net.py:build"
    assert config.model.weights == f"{tmp_path}/net.weights"
    assert config.data.source == f"imagefolder:{tmp_path}/studies/images"
    assert config.space.model_space == f"{tmp_path}/spaces/net.py:Space"


@pytest.mark.parametrize(
    ("source", "resolved"),
    [
        ("text:tables/train.tsv", "text:{here}/tables/train.tsv"),
        ("npz:../arrays.npz", "npz:{above}/arrays.npz"),
        ("hf:saved", "hf:{here}/saved"),
        ("hf:package:data_package/saved", "hf:package:data_package/saved"),
        ("own/data.py:load", "{here}/own/data.py:load"),
        ("package.data:load", "package.data:load"),
        ("torchvision:CIFAR10", "torchvision:CIFAR10"),
        ("npz:/absolute.npz", "npz:/absolute.npz"),
        ("npz:", "npz:"),
    ],
)
def test_the_path_in_a_data_source_is_relative_to_the_study_file(tmp_path: Path, source: str, resolved: str) -> None:
    (tmp_path / "studies").mkdir()
    config = _load(tmp_path / "studies", data=f'source = "{source}"')
    assert config.data.source == resolved.format(here=tmp_path / "studies", above=tmp_path)


def test_other_files_of_the_data_the_model_and_the_task_are_too(tmp_path: Path) -> None:
    (tmp_path / "models" / "bert").mkdir(parents=True)
    config = _load(
        tmp_path,
        model='source = "hf:models/bert"',
        data='source = "text:a.tsv"\nvalidation = "b.tsv"\ntest = "{data}/c.tsv"\nfolder = "own"\ntokenizer = "tok"',
        task='loss = "own.py:loss"\nmetric = "package.metrics:score"',
    )
    assert config.model.source == f"hf:{tmp_path}/models/bert"
    assert (config.data.validation, config.data.test) == (f"{tmp_path}/b.tsv", f"{tmp_path}/own/c.tsv")
    assert config.data.tokenizer == f"{tmp_path}/tok"
    assert (config.task.loss, config.task.metric) == (f"{tmp_path}/own.py:loss", "package.metrics:score")


def test_a_folder_in_a_package_is_no_path(tmp_path: Path) -> None:
    reference = "package:some_package/model"
    config = _load(
        tmp_path, model=f'source = "hf:{reference}"', data=f'source = "text:a.tsv"\ntokenizer = "{reference}"'
    )
    assert config.model.source == f"hf:{reference}"
    assert config.data.tokenizer == reference


def test_references_that_are_no_paths_stay(tmp_path: Path) -> None:
    config = _load(tmp_path, model='source = "package.pyramid:build"', space='model_space = "pkg.spaces:Space"')
    assert config.model.source == "package.pyramid:build"
    assert config.model.weights is None
    assert config.space.model_space == "pkg.spaces:Space"


def test_the_data_folder_comes_from_the_file_the_environment_or_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(
        tmp_path,
        model='source = "a:b"\nweights = "{data}/net.pt"',
        data='source = "imagefolder:{data}/images"\nfolder = "own"',
    )
    own = load_study(path)
    assert own.data.source == f"imagefolder:{tmp_path}/own/images"
    assert own.model.weights == f"{tmp_path}/own/net.pt"
    monkeypatch.setenv(DATA_ENVIRONMENT_VARIABLE, "/environment")
    assert load_study(path).data.source == "imagefolder:/environment/images"
    assert load_study(path, data_folder="/given").data.source == "imagefolder:/given/images"
    monkeypatch.chdir(tmp_path)
    assert load_study(path, data_folder="here").data.folder == f"{tmp_path}/here"


def test_a_data_folder_that_nobody_names(tmp_path: Path) -> None:
    message = _message(tmp_path, data='source = "imagefolder:{data}/images"')
    assert message == (
        "{data} needs a data folder; 'imagefolder:{data}/images' has none; "
        f"set data.folder, --data or {DATA_ENVIRONMENT_VARIABLE}"
    )


# Round trip


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {
            "study": 'name = "b"\ntimeout = "1.5h"\nmode = "scalar"\nsampler = "gp"\nseed = 3',
            "model": 'source = "net.py:build"\nweights = "w.pt"\narguments = {depth = [1, 2], flag = true}',
            "data": 'source = "imagefolder:{data}/x"\nfolder = "d"\nmean = [0.5, 0.4, 0.3]\nstd = [1, 1, 2]',
            "space": 'precision = ["w8a8", "float32"]\nsparsity = [0]\nmodel_space = "net.py:Space"',
            "limits": "max_accuracy_drop = 1\nmin_speedup = 8",
        },
        {
            "data": 'source = "text:{data}/a.tsv"\nfolder = "d"\nvalidation = "b.tsv"\ntest = "c.tsv"\n'
            'text_columns = ["first", "second"]\nlabel_column = "same"\ntokenizer = "words"\nmax_length = 64\n'
            "validation_longest = 10\nexclude_overlap = true",
            "task": 'loss = "own.py:loss"',
        },
        {"data": 'source = "own/data.py:load"\narguments = {rows = 10, kinds = ["a", "b"]}'},
    ],
)
def test_the_resolved_study_reads_back_as_itself_anywhere(tmp_path: Path, sections: dict[str, str]) -> None:
    config = _load(tmp_path, **sections)
    copy = tmp_path / "runs" / "copy.toml"
    copy.parent.mkdir()
    copy.write_text(to_toml(config))
    assert load_study(copy) == config


def test_a_model_that_is_no_folder_may_be_one_of_the_hub(tmp_path: Path) -> None:
    assert _load(tmp_path, model='source = "hf:some/model"').model.source == "hf:some/model"
