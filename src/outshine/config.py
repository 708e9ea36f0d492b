"""Settings of a run: their types and bounds, the presets, and `--set key=value`."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from outshine.errors import UserError, did_you_mean, raise_problems
from outshine.tasks import Task, validation_lines

# Settings that do not change what a run computes.
WITHOUT_EFFECT = frozenset(
    {"save_every_s", "log_every", "eval_every", "num_threads", "device", "keep", "track"}
)
# Settings that may hold one value per task.
BY_TASK = ("task_weight", "sampling_weights", "symmetric")


class TrainConfig(BaseModel):
    """All settings of one training run. A key that was not given takes the preset's value.

    Settings that are unknown or do not fit raise one UserError with all of them.

    Attributes:
        preset: A key of PRESETS; by default `bam-single` for one task, `bam-multi` for several.
        encoder: Local folder in Hugging Face layout, hub id, or `builtin`.
        lr: Learning rate at depth 0 (heads) after the warm-up.
        lr_schedule: See `schedules.lr_factor`.
        epochs: Passes over the data; an epoch is sum_t |D_t| draws.
        max_steps: Upper bound on optimizer steps, 0 for none; the schedules follow it.
        max_train_rows: Rows used per task, 0 for all; drawn in an order that no seed changes.
        batch_size: Rows per optimizer step.
        max_length: Tokens per row after truncation, special tokens included.
        max_tokens: Padded tokens per micro-batch; 0 chooses by device.
        warmup_fraction: Share of the steps with a rising learning rate.
        weight_decay: Decoupled, not on biases and normalisation weights.
        adam_eps: Epsilon of AdamW.
        bias_correction: Whether AdamW corrects its moments for their start at zero.
        layer_decay: Learning rate at depth d from the output is lr * layer_decay ** d.
        sampling: How often tasks are drawn: `exponent` p ~ |D|**sampling_exponent,
            `proportional` p ~ |D|, `uniform`, `temperature` p ~ |D|**(1 / sampling_temperature),
            `explicit` p ~ sampling_weights.
        task_weight: Task -> factor on its rows' loss (default 1).
        symmetric: false: no swapped pairs; true: as each task says; or task -> true / false.
        anneal: See `schedules.gold_weight`; has an effect on tasks with a teacher.
        gold_weight: The weight on gold with anneal = "constant".
        temperature: Divides the teacher's logits before the softmax.
        loss_reduction: `mean` over the weight of the step's rows, or `sum`.
        max_grad_norm: Gradient clipping, 0 for none.
        dropout: Replaces the encoder's hidden dropout; unset: the encoder's own.
        attention_dropout: Replaces the encoder's attention dropout; None, which only Python can
            say: the encoder's own.
        pooling: `auto` is the family's own transform, `cls` and `mean` use the last layer bare.
        init: `encoder` (its weights), `random`, `teachers` (the mean of their encoders, with their
            heads; they are runs with weights), or the folder of a run to start from.
        precision: `auto` is bf16 where the processor computes in it, else fp32.
        compile: Whether torch.compile wraps the encoder; on a GPU, in bf16, with CUDA graphs.
        gradient_checkpointing: Trades time for memory.
        ema: Decay of an exponential moving average of the weights, 0 for none; kept at the end.
        save_every_s: Seconds between checkpoints (of several processes: at a line of the log).
        eval_every: Steps between dev evaluations in the log, 0 for none.
        log_every: Steps between lines of the log.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        num_threads: CPU threads, 0 for torch's choice.
        deterministic: Whether only deterministic algorithms are used (matters on GPUs).
        fold: "2/5": trains without the second of five parts of the rows, the same ones always
            (see `data.folds`); "" for all rows.
        keep: What a finished run keeps: `all`, `predictions` (no weights) or `metrics`.
        track: Trackers that get the log's numbers and the final metrics: "tensorboard", "wandb",
            "mlflow"; by accelerate, a run of theirs for each run.
        seed: One seed gives the streams init, order and dropout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    preset: str = ""
    encoder: str = ""
    lr: float = Field(5e-5, gt=0)
    lr_schedule: Literal["linear", "bam", "constant"] = "linear"
    epochs: float = Field(3.0, gt=0)
    max_steps: int = Field(0, ge=0)
    max_train_rows: int = Field(0, ge=0)
    fold: str = Field("", pattern=r"^([1-9]\d*/[1-9]\d*)?$")
    batch_size: int = Field(32, ge=1)
    max_length: int = Field(128, ge=4)
    max_tokens: int = Field(0, ge=0)
    warmup_fraction: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    adam_eps: float = Field(1e-8, gt=0)
    bias_correction: bool = True
    layer_decay: float = Field(1.0, gt=0, le=1)
    sampling: Literal["exponent", "proportional", "uniform", "temperature", "explicit"] = "exponent"
    sampling_exponent: float = Field(0.75, ge=0)
    sampling_temperature: float = Field(1.0, gt=0)
    sampling_weights: dict[str, float] = {}
    task_weight: dict[str, PositiveFloat] = {}
    symmetric: bool | dict[str, bool] = True
    anneal: Literal["linear", "cosine", "exponential", "step", "constant"] = "linear"
    gold_weight: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(1.0, gt=0)
    loss_reduction: Literal["mean", "sum"] = "mean"
    max_grad_norm: float = Field(1.0, ge=0)
    dropout: float | None = Field(None, ge=0, lt=1)
    attention_dropout: float | None = Field(0.0, ge=0, lt=1)
    pooling: Literal["auto", "cls", "mean"] = "auto"
    init: str = "encoder"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    ema: float = Field(0.0, ge=0, lt=1)
    save_every_s: float = Field(300.0, gt=0)
    eval_every: int = Field(0, ge=0)
    log_every: int = Field(10, ge=1)
    device: str = "auto"
    num_threads: int = Field(0, ge=0)
    deterministic: bool = False
    keep: Literal["all", "predictions", "metrics"] = "all"
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    seed: int = Field(1, ge=0)

    @field_validator("track", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if self.preset and self.preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise ValueError(
                f"preset: {self.preset!r}{did_you_mean(self.preset, PRESETS)}, "
                f"expected one of {known}"
            )
        number, _, count = self.fold.partition("/")
        if self.fold and not int(number) <= int(count) >= 2:
            raise ValueError(f'fold: "{self.fold}", expected one of two or more, such as "2/5"')
        return self

    @model_validator(mode="wrap")  # the last one is around the others
    @classmethod
    def _told(cls, given: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        """Tells all problems in one UserError."""
        try:
            return check(given)
        except ValidationError as error:
            raise_problems(
                "cannot use the settings",
                validation_lines(error, cls),
                "docs/reference.md lists every setting with its type and meaning",
            )
            raise

    def given(self) -> dict[str, Any]:
        """The settings that were given, not left to a preset or default."""
        return {key: getattr(self, key) for key in self.model_fields_set}


_BAM_SINGLE = {"lr": 5e-5, "batch_size": 32, "epochs": 3.0, "layer_decay": 1.0}
_BAM_MULTI = {"lr": 1e-4, "batch_size": 128, "epochs": 6.0, "layer_decay": 0.9}
_REFERENCE = {
    "lr_schedule": "bam",
    "adam_eps": 1e-6,
    "bias_correction": False,
    "loss_reduction": "sum",
    "layer_decay": 0.9,
    "dropout": 0.1,
    "attention_dropout": 0.1,
}

# small-*: the learning rate that was best of 1e-4, 3e-4 and 1e-3 for every arm of study b of first
# light (4.4 M parameters), and of 1e-4 and 3e-4 for single and multi in study a (22.7 M; its
# student did better with 1e-4). Batch size and epochs are those of its runs, and were not compared.
PRESETS: dict[str, dict[str, Any]] = {
    "bam-single": _BAM_SINGLE,
    "bam-multi": _BAM_MULTI,
    "bam-reference-single": _BAM_SINGLE | _REFERENCE,
    "bam-reference-multi": _BAM_MULTI | _REFERENCE,
    "small-single": {"lr": 3e-4, "batch_size": 32, "epochs": 4.0, "layer_decay": 1.0},
    "small-multi": {"lr": 3e-4, "batch_size": 64, "epochs": 4.0, "layer_decay": 1.0},
}


def resolve(cfg: TrainConfig, num_tasks: int, **overrides: Any) -> TrainConfig:
    """Returns the complete settings of one run: preset, then `cfg`, then `overrides`.

    Args:
        cfg: Settings given so far; a key left unset takes the preset's value.
        num_tasks: Chooses the default preset.
        **overrides: Arguments given to `train`; None means not given.

    Raises:
        UserError: If an override is unknown or unfit, or no encoder is named.
    """
    given = cfg.given() | {key: value for key, value in overrides.items() if value is not None}
    preset = given.get("preset") or ("bam-single" if num_tasks == 1 else "bam-multi")
    resolved = TrainConfig(**(PRESETS.get(preset, {}) | given | {"preset": preset}))
    if not resolved.encoder:
        raise UserError(
            "cannot train: no encoder given, expected a folder, a hub id or `builtin`",
            "add `--encoder builtin`, or `encoder=` in Python",
        )
    return resolved


def takes_swapped(task: Task, cfg: TrainConfig) -> bool:
    """Whether a run with these settings trains on the swapped order of a task's pairs, too."""
    if isinstance(cfg.symmetric, dict):
        wanted = cfg.symmetric.get(task.name, task.symmetric)
        if wanted and len(task.text) != 2:
            raise UserError(
                f"cannot swap the texts of {task.name!r}: one text column, expected two",
                f"leave {task.name} out of `symmetric`",
            )
        return wanted
    return cfg.symmetric and task.symmetric


def of_tasks(cfg: TrainConfig, names: Sequence[str]) -> TrainConfig:
    """The settings with what they give by task, for these tasks alone."""
    own = {
        key: {name: value for name, value in given.items() if name in names}
        for key in BY_TASK
        if isinstance(given := getattr(cfg, key), dict)
    }
    return cfg.model_copy(update=own)


def parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """Reads `key=value` arguments; the value is TOML, or else plain text.

    Raises:
        UserError: If an argument has no `=`, or names an unknown key.
    """
    settings: dict[str, Any] = {}
    problems = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals:
            problems.append(f"--set {assignment!r}, expected key=value")
        elif key not in TrainConfig.model_fields:
            known = did_you_mean(key, TrainConfig.model_fields)
            problems.append(f"--set {assignment!r}: unknown key {key!r}{known}")
        else:
            settings[key] = _toml_value(text.strip())
    raise_problems("cannot read the settings", problems, "write for example `--set lr=1e-4`")
    return settings


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
