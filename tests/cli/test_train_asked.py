"""Options over a TOML file over defaults; everything that is wrong is named with its option, or its file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from realign_cluster.cli.main import run as realign
from realign_cluster.cli.train_asked import train_asked
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.training import KlSettings

TYPED = {("model",): "m", ("data",): ["a.jsonl"], ("steps",): 10, ("global_batch",): 4}


def config(folder: Path, text: str) -> Path:
    path = folder / "train.toml"
    path.write_text(text)
    return path


def test_what_is_typed_goes_before_the_file_and_that_before_the_default(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        'model = "other"\nvalid = "v.jsonl"\nsteps = 99\n[optimizer]\nlearning_rate = 1e-4\nschedule = "linear"\n'
        '[adapter]\nkeys = ["self_attn.q_proj"]\n[kl]\nevery = 50\n',
    )
    asked = train_asked({**TYPED, ("optimizer", "schedule"): "constant"}, path)
    assert (asked.model, asked.data, asked.valid) == ("m", ("a.jsonl",), ("v.jsonl",))
    settings = asked.settings
    assert (settings.steps, settings.optimizer.learning_rate, settings.optimizer.schedule) == (10, 1e-4, "constant")
    assert settings.adapter.keys == ("self_attn.q_proj",)
    assert settings.kl is not None
    assert (settings.kl.every, settings.kl.budget, settings.method) == (50, 0.1, "sft")


def test_probes_belong_to_the_divergence_but_are_no_setting(tmp_path: Path) -> None:
    path = config(tmp_path, '[kl]\nevery = 50\nprobes = ["a.jsonl", "b.jsonl"]\n')
    asked = train_asked(TYPED, path)
    assert asked.kl_probes == ("a.jsonl", "b.jsonl")
    assert asked.settings.kl == KlSettings(every=50)
    assert train_asked({**TYPED, ("kl", "probes"): ["c.jsonl"]}, path).kl_probes == ("c.jsonl",)
    assert train_asked(TYPED, None).kl_probes == ()


def test_all_can_come_from_a_file(tmp_path: Path) -> None:
    text = 'model = "m"\ndata = ["a", "b"]\nsteps = 3\nglobal_batch = 2\nparallel = "tensor"\ntrack = "none"\n'
    asked = train_asked({}, config(tmp_path, text))
    assert (asked.data, asked.parallel, asked.backend) == (("a", "b"), "tensor", "auto")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[optimizer]\nlerning_rate = 1\n", "train.toml:2: optimizer.lerning_rate: unknown; did you mean"),
        ("seed = 1\nstepps = 4\n", "train.toml:2: stepps: unknown; did you mean 'steps'?"),
        ("\n\nparallel = 'all'\n", "train.toml:3: parallel: 'all' will not do"),
        ("[adapter]\nrank = 'eight'\n", "train.toml:2: adapter.rank: "),
        ("[optimizer]\nlearning_rate = 0\n", "train.toml:2: optimizer.learning_rate: with 0 nothing is learned"),
        ("[kl]\nbudget = 0.2\n", "never measured"),
        ('[kl]\nprobes = "p.jsonl"\n', "train.toml:2: kl.probes: the divergence is never measured"),
        ("steps = \n", "Invalid value (at line 1"),
    ],
)  # fmt: skip
def test_mistakes_of_a_file_are_named_with_their_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        train_asked(TYPED, config(tmp_path, text))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({("optimizer", "learning_rate"): 3.0}, "--learning-rate: 3 is absurd"),
        ({("loss", "label_smoothing"): 0.6, ("method",): "cdpo"}, "--label-smoothing: 0.6"),
        ({("global_batch",): 0}, "--global-batch: 0 will not do"),
        ({("method",): "ppo"}, "--method: "),
        ({("kl", "probes"): ["p"], ("kl", "every"): 5, ("kl", "prompts"): 8}, "--kl-probes: all of its prompts"),
        ({("kl", "probes"): ["p"], ("kl", "every"): 5, ("max_tokens",): 64}, "64 sampled tokens leave no room"),
        ({("evaluation", "patience"): 2}, "--patience: "),
        ({("evaluation", "every"): 5}, "--evaluate-every: there is nothing to evaluate on"),
        (
            {("evaluation", "every"): 5, ("evaluation", "patience"): 2, ("benchmarks",): ["quiz.jsonl"]},
            "--patience: no validation loss is measured",
        ),
    ],
)
def test_mistakes_of_options_are_named(given: dict[tuple[str, ...], object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        train_asked({**TYPED, **given}, None)
    assert said in str(caught.value)


def test_what_is_missing_is_said_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert realign(["train", "--out", str(tmp_path / "run"), "--hostfile", "none.json", "--steps", "3"]) == 2
    assert "--model, --data, --global-batch: missing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
