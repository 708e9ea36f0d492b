"""Settings: precedence, presets, and `--set key=value`."""

from __future__ import annotations

from typing import Any

import pytest

from outshine.config import PRESETS, TrainConfig, parse_settings, resolve
from outshine.errors import UserError


def test_presets_hold_the_numbers_of_the_paper() -> None:
    single = resolve(TrainConfig(encoder="e"), 1)
    assert single.preset == "bam-single"
    assert (single.lr, single.batch_size, single.epochs, single.layer_decay) == (5e-5, 32, 3, 1.0)
    multi = resolve(TrainConfig(encoder="e"), 4)
    assert multi.preset == "bam-multi"
    assert (multi.lr, multi.batch_size, multi.epochs, multi.layer_decay) == (1e-4, 128, 6, 0.9)
    for cfg in (single, multi):
        assert (cfg.max_length, cfg.warmup_fraction, cfg.weight_decay) == (128, 0.1, 0.01)
        assert (cfg.max_grad_norm, cfg.lr_schedule, cfg.loss_reduction) == (1.0, "linear", "mean")
        assert (cfg.bias_correction, cfg.adam_eps) == (True, 1e-8)
        assert (cfg.sampling, cfg.sampling_exponent, cfg.temperature) == ("exponent", 0.75, 1.0)
        assert (cfg.anneal, cfg.symmetric, cfg.pooling) == ("linear", True, "auto")


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("bam-reference-single", {"lr": 5e-5, "batch_size": 32, "epochs": 3.0}),
        ("bam-reference-multi", {"lr": 1e-4, "batch_size": 128, "epochs": 6.0}),
    ],
)
def test_reference_presets_hold_the_facts_of_the_reference(
    preset: str, expected: dict[str, Any]
) -> None:
    cfg = resolve(TrainConfig(encoder="e", preset=preset), 1)
    reference = {
        "loss_reduction": "sum",
        "max_grad_norm": 1.0,
        "bias_correction": False,
        "adam_eps": 1e-6,
        "lr_schedule": "bam",
        "layer_decay": 0.9,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "symmetric": True,
    }
    for key, value in (expected | reference).items():
        assert getattr(cfg, key) == value, key


def test_a_setting_beats_the_preset_and_an_argument_beats_a_setting() -> None:
    assert resolve(TrainConfig(encoder="e", preset="bam-multi"), 1).lr == 1e-4
    assert resolve(TrainConfig(encoder="e", lr=2e-5), 4).lr == 2e-5
    assert resolve(TrainConfig(encoder="e", lr=2e-5), 4, lr=3e-5).lr == 3e-5
    assert resolve(TrainConfig(encoder="e", lr=2e-5), 4, lr=None).lr == 2e-5


def test_a_setting_at_its_default_beats_the_preset_when_it_is_given() -> None:
    default = TrainConfig.model_fields["batch_size"].default
    assert PRESETS["bam-multi"]["batch_size"] != default
    assert resolve(TrainConfig(encoder="e", batch_size=default), 4).batch_size == default


def test_resolving_resolved_settings_changes_nothing() -> None:
    cfg = resolve(TrainConfig(encoder="e", lr=2e-5), 4)
    assert resolve(cfg, 1) == cfg


def test_presets_name_settings_that_exist() -> None:
    for preset, values in PRESETS.items():
        assert values.keys() <= TrainConfig.model_fields.keys()
        assert resolve(TrainConfig(encoder="e", preset=preset), 1).preset == preset


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr=5e-5", 5e-5),
        ("lr = 1e-4", 1e-4),
        ("epochs=3", 3),
        ("bias_correction=false", False),
        ("compile=true", True),
        ("anneal=cosine", "cosine"),
        ('anneal="cosine"', "cosine"),
        ("task_weight={rte = 2.0, mrpc = 0.5}", {"rte": 2.0, "mrpc": 0.5}),
        ("symmetric={mrpc = false}", {"mrpc": False}),
        ("symmetric=false", False),
        ('track=["tensorboard"]', ["tensorboard"]),
        ("encoder=org/name=x", "org/name=x"),
        ("init=runs/a b", "runs/a b"),
    ],
)
def test_set_reads_toml_values_and_else_plain_text(text: str, value: Any) -> None:
    key = text.partition("=")[0].strip()
    settings = parse_settings([text])
    assert settings == {key: value}
    assert type(settings[key]) is type(value)
    TrainConfig(**settings)


def test_the_last_set_wins() -> None:
    assert parse_settings(["lr=1e-4", "lr=2e-4"]) == {"lr": 2e-4}


def test_all_problems_of_set_are_named_at_once_with_the_nearest_key() -> None:
    with pytest.raises(UserError) as caught:
        parse_settings(["lr", "layer_deacy=0.9", "epochs=1"])
    assert str(caught.value) == (
        "cannot read the settings: 2 problems\n"
        "  --set 'lr', expected key=value\n"
        "  --set 'layer_deacy=0.9': unknown key 'layer_deacy' (did you mean 'layer_decay'?)\n"
        "hint: write for example `--set lr=1e-4`"
    )


def test_values_out_of_bounds_are_named_with_their_key() -> None:
    with pytest.raises(UserError) as caught:
        TrainConfig(lr=0, batch_size=2.5, sampling="uniformly", epochs="many")
    assert str(caught.value) == (
        "cannot use the settings: 4 problems\n"
        "  lr: 0, expected: Input should be greater than 0\n"
        "  epochs: 'many', expected: Input should be a valid number, unable to parse string as a "
        "number\n"
        "  batch_size: 2.5, expected: Input should be a valid integer, got a number with a "
        "fractional part\n"
        "  sampling: 'uniformly', expected: Input should be 'exponent', 'proportional', 'uniform', "
        "'temperature' or 'explicit'\n"
        "hint: docs/reference.md lists every setting with its type and meaning"
    )


def test_nan_is_no_setting() -> None:
    with pytest.raises(UserError, match="lr: nan, expected: Input should be a finite number"):
        TrainConfig(**parse_settings(["lr=nan"]))


def test_unknown_preset_and_missing_encoder_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        resolve(TrainConfig(encoder="e"), 1, preset="bam-mutli")
    assert caught.value.message == (
        "cannot use the settings: preset: 'bam-mutli' (did you mean 'bam-multi'?), expected one of "
        "bam-single, bam-multi, bam-reference-single, bam-reference-multi, small-single, "
        "small-multi"
    )
    with pytest.raises(UserError) as caught:
        resolve(TrainConfig(), 1)
    assert str(caught.value) == (
        "cannot train: no encoder given, expected a folder, a hub id or `builtin`\n"
        "hint: add `--encoder builtin`, or `encoder=` in Python"
    )


def test_unknown_setting_gets_a_did_you_mean() -> None:
    with pytest.raises(UserError) as caught:
        TrainConfig(warmup_fracton=0.1)
    assert caught.value.message == (
        "cannot use the settings: unknown key 'warmup_fracton' (did you mean 'warmup_fraction'?)"
    )


@pytest.mark.parametrize("fold", ["3/2", "1/1"])
def test_a_fold_is_one_of_two_or_more(fold: str) -> None:
    with pytest.raises(UserError) as caught:
        TrainConfig(fold=fold)
    assert f'fold: "{fold}", expected one of two or more, such as "2/5"' in caught.value.message
    assert TrainConfig(fold="2/5").fold == "2/5"
