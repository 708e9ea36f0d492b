"""The runs of a study: which there are, which are the same, and who teaches whom."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from outshine.chains import Policy
from outshine.config import TrainConfig
from outshine.errors import UserError
from outshine.graph import Graph, Node, _teachers, build_graph, effective_settings, encoder_identity
from outshine.study_file import Selection, parse_study
from outshine.tasks import Task
from studies import graph_of, read_spec, study_text, write_study

STUDIES = Path(__file__).parent.parent / "studies"


def the_run(graph: Graph, arm: str, seed: int = 1, task: str = "tickets") -> Node:
    """The run that gives an arm's result on a task."""
    runs = [graph.nodes[run] for run in graph.ends[arm][seed]]
    return next(node for node in runs if task in [t.name for t in node.tasks])


def teachers_of(graph: Graph, node: Node, task: str = "tickets") -> list[Node]:
    return [graph.nodes[run] for run in node.teachers[task]]


def test_runs_that_several_arms_need_are_there_once(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, study_text("enc"))
    assert Counter(node.chain for node in graph.nodes.values()) == {
        "single": 4,  # 2 tasks x 2 seeds: an arm, and the teachers of another
        "multi": 2,
        "single->multi": 2,
    }
    student = the_run(graph, "single->multi")
    assert teachers_of(graph, student) == [the_run(graph, "single")]


def test_teachers_come_before_students_and_seeds_one_after_another(tmp_path: Path) -> None:
    arms = '["single->multi->single->multi", "multi+finetune"]'
    graph = graph_of(tmp_path, study_text("enc", arms=arms))
    seen: set[str] = set()
    for node in graph.nodes.values():
        assert seen.issuperset(node.parents)
        seen.add(node.id)
    seeds = [node.cfg.seed for node in graph.nodes.values()]
    assert seeds == sorted(seeds)


def test_each_link_of_a_long_chain_teaches_the_next(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, study_text("enc", arms='["single->multi->single"]'))
    last = the_run(graph, "single->multi->single")
    (middle,) = teachers_of(graph, last)
    assert [task.name for task in middle.tasks] == ["tickets", "urgency"]
    assert [node.stage for node in teachers_of(graph, middle, "urgency")] == ["single"]
    assert set(last.teachers) == {"tickets"}


def test_finetuning_goes_on_with_the_multi_task_run_of_its_seed(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, study_text("enc", arms='["multi", "multi+finetune"]'))
    tuned = the_run(graph, "multi+finetune", seed=2)
    assert tuned.start == the_run(graph, "multi", seed=2).id
    assert tuned.teachers == {}
    assert tuned.chain == "multi+finetune"
    assert tuned.cfg.lr == 1e-4
    assert graph.needs_weights(graph.nodes[tuned.start], tuned)


@pytest.mark.parametrize(
    ("policy", "seeds"),
    [
        ("same-seed", {1: [1], 2: [2]}),
        ("first", {1: [1], 2: [1]}),
        ("ensemble:2", {1: [1, 2], 2: [3, 4]}),
        ("ensemble:3", {1: [1, 2, 3], 2: [4, 5, 6]}),
        ("out-of-fold:2", {1: [1, 1], 2: [2, 2]}),
    ],
)
def test_the_policy_says_which_seeds_teach(
    tmp_path: Path, policy: str, seeds: dict[int, list[int]]
) -> None:
    text = study_text("enc", f'teachers = "{policy}"', arms='["single->multi"]')
    graph = graph_of(tmp_path, text)
    found = {
        seed: [n.cfg.seed for n in teachers_of(graph, the_run(graph, "single->multi", seed))]
        for seed in (1, 2)
    }
    assert found == seeds


def test_ensembles_of_listed_seeds_are_disjoint(tmp_path: Path) -> None:
    keys = 'teachers = "ensemble:2"\nseeds = [5, 2, 9]'
    graph = graph_of(tmp_path, study_text("enc", keys, arms='["single->multi"]'))
    blocks = [
        [n.cfg.seed for n in teachers_of(graph, the_run(graph, "single->multi", seed))]
        for seed in (5, 2, 9)
    ]
    assert blocks == [[5, 2], [9, 10], [11, 12]]


def test_no_ensemble_has_a_teacher_of_the_seed_that_chooses(tmp_path: Path) -> None:
    spec = read_spec(write_study(tmp_path, study_text("enc", "seeds = [1, 2]")))
    chosen = replace(spec, select=Selection(4, ({},), {}))
    taught_by = [_teachers(chosen, Policy("ensemble", 2), seed) for seed in (1, 2, 3, 5)]
    assert [[seed for seed, _ in block] for block in taught_by] == [[1, 2], [3, 5], [6, 7], [8, 9]]


def test_teachers_of_teachers_are_disjoint_too(tmp_path: Path) -> None:
    text = study_text("enc", 'teachers = "ensemble:2"', arms='["single->multi->single"]')
    graph = graph_of(tmp_path, text)
    middles = [
        middle
        for seed in (1, 2)
        for middle in teachers_of(graph, the_run(graph, "single->multi->single", seed))
    ]
    seeds = [node.cfg.seed for middle in middles for node in teachers_of(graph, middle)]
    assert seeds == [1, 2, 3, 4, 5, 6, 7, 8]


def test_out_of_fold_teachers_each_lack_a_fold(tmp_path: Path) -> None:
    text = study_text("enc", 'teachers = "out-of-fold:3"', arms='["single", "single->multi"]')
    graph = graph_of(tmp_path, text)
    taught_by = teachers_of(graph, the_run(graph, "single->multi"))
    assert [node.cfg.fold for node in taught_by] == ["1/3", "2/3", "3/3"]
    assert the_run(graph, "single").cfg.fold == ""
    assert len({node.id for node in [*taught_by, the_run(graph, "single")]}) == 4


@pytest.mark.parametrize("fewer", ["max_train_rows = 8", "symmetric = false"])
def test_folds_that_do_not_answer_all_rows_of_their_student_are_refused(
    tmp_path: Path, fewer: str
) -> None:
    keys = 'tasks = ["duplicate.toml", "tickets.toml"]\nteachers = "out-of-fold:2"'
    text = study_text("enc", f"{keys}\n\n[stage.single.task.duplicate]\n{fewer}\n")
    with pytest.raises(UserError) as caught:
        graph_of(tmp_path, text)
    assert caught.value.message == (
        "cannot plan the arm 'single->multi': its stage multi has more rows of duplicate than its "
        "teachers out of fold, expected no more"
    )
    assert caught.value.hint == (
        "give both the same max_train_rows and symmetric, or take other teachers"
    )


def test_an_arm_may_have_a_policy_of_its_own(tmp_path: Path) -> None:
    keys = '\n\n[[arm]]\nname = "ensemble"\nchain = "single->multi"\nteachers = "ensemble:2"\n'
    graph = graph_of(tmp_path, study_text("enc", keys))
    first = {node.id for node in teachers_of(graph, the_run(graph, "single->multi"))}
    assert first < {node.id for node in teachers_of(graph, the_run(graph, "ensemble"))}


def test_an_arm_may_have_tasks_of_its_own(tmp_path: Path) -> None:
    keys = (
        '\n\n[[arm]]\nname = "one"\nchain = "multi"\ntasks = ["tickets.toml", "duplicate.toml"]\n'
    )
    graph = graph_of(tmp_path, study_text("enc", keys))
    assert [task.name for task in the_run(graph, "one").tasks] == ["tickets", "duplicate"]


def variation(settings: str, chain: str) -> str:
    return f'\n\n[[arm]]\nname = "v"\nchain = "{chain}"\nset = {{ {settings} }}\n'


@pytest.mark.parametrize(
    ("chain", "settings"),
    [
        ("single", 'anneal = "constant", gold_weight = 0.1, temperature = 2.0'),
        ("single", 'sampling = "uniform", sampling_exponent = 0.5'),
        ("single", "task_weight = { tickets = 2.0 }"),
        ("multi", 'anneal = "constant", gold_weight = 0.1, temperature = 2.0'),
        ("multi", "sampling_temperature = 3.0, sampling_weights = { tickets = 1.0 }"),
        ("multi", "task_weight = { tickets = 1.0 }"),
        ("multi", "symmetric = false"),
        ("single->multi", "gold_weight = 0.1"),
        ("single", 'save_every_s = 1.0, log_every = 7, num_threads = 1, device = "cpu"'),
        ("single", 'preset = "bam-single", layer_decay = 1.0'),
    ],
)
def test_settings_without_effect_are_not_part_of_the_identity(
    tmp_path: Path, chain: str, settings: str
) -> None:
    graph = graph_of(tmp_path, study_text("enc", variation(settings, chain)))
    assert graph.ends["v"] == graph.ends[chain]


@pytest.mark.parametrize(
    ("chain", "settings"),
    [
        ("single", "lr = 2e-3"),
        ("single", 'loss_reduction = "sum", task_weight = { tickets = 2.0, urgency = 2.0 }'),
        ("multi", 'sampling = "uniform"'),
        ("multi", "sampling_exponent = 0.5"),
        ("multi", "task_weight = { tickets = 2.0 }"),
        ("single->multi", "temperature = 2.0"),
        ("single->multi", 'anneal = "constant"'),
        ("single->multi", 'anneal = "constant", gold_weight = 0.1'),
        ("single", 'init = "random"'),
    ],
)
def test_settings_with_an_effect_make_other_runs_with_the_same_teachers(
    tmp_path: Path, chain: str, settings: str
) -> None:
    graph = graph_of(tmp_path, study_text("enc", variation(settings, chain)))
    for seed in (1, 2):
        assert set(graph.ends["v"][seed]).isdisjoint(graph.ends[chain][seed])
        assert the_run(graph, "v", seed).teachers == the_run(graph, chain, seed).teachers


def test_two_constant_weights_on_gold_are_two_runs(tmp_path: Path) -> None:
    keys = variation('anneal = "constant", gold_weight = 0.0', "single->multi")
    keys += keys.replace('"v"', '"w"').replace("0.0", "0.5").lstrip("\n")
    graph = graph_of(tmp_path, study_text("enc", keys))
    assert graph.ends["v"] != graph.ends["w"]


def test_symmetric_matters_where_a_task_is_symmetric(tmp_path: Path) -> None:
    keys = 'tasks = ["duplicate.toml", "tickets.toml"]' + variation("symmetric = false", "single")
    graph = graph_of(tmp_path, study_text("enc", keys))
    assert the_run(graph, "v", task="duplicate") != the_run(graph, "single", task="duplicate")
    assert the_run(graph, "v") == the_run(graph, "single")


def test_the_identity_covers_the_data_wherever_they_lie(tmp_path: Path) -> None:
    here = graph_of(tmp_path / "a", study_text("enc"))
    there = graph_of(tmp_path / "b", study_text("enc"))
    assert here.ends == there.ends
    csv = tmp_path / "b" / "tickets-dev.csv"
    csv.write_text(csv.read_text() + "my invoice again,billing\n")
    changed = build_graph(read_spec(tmp_path / "b" / "tiny.toml"))
    assert the_run(changed, "single").id != the_run(here, "single").id
    urgent = the_run(changed, "single", task="urgency")
    assert urgent.id == the_run(here, "single", task="urgency").id
    assert the_run(changed, "multi").id != the_run(here, "multi").id


def test_the_identity_covers_the_encoders_content_wherever_it_lies(
    tmp_path: Path, encoder: Path
) -> None:
    import shutil

    copy = shutil.copytree(encoder, tmp_path / "copy")
    other = shutil.copytree(encoder, tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    assert encoder_identity(str(encoder)) == encoder_identity(str(copy))
    assert encoder_identity(str(encoder)) != encoder_identity(str(other))
    assert encoder_identity("org/model") == "org/model"


def test_settings_of_one_task_reach_its_single_runs_alone(tmp_path: Path) -> None:
    keys = "\n\n[stage.single.task.urgency]\nlr = 0.5\n"
    graph = graph_of(tmp_path, study_text("enc", keys))
    assert the_run(graph, "single", task="urgency").cfg.lr == 0.5
    assert the_run(graph, "single").cfg.lr == 1e-3
    assert the_run(graph, "multi").cfg.lr == 1e-3


def test_a_student_of_more_rows_needs_its_teachers_weights(tmp_path: Path) -> None:
    keys = "\n\n[stage.single.task.tickets]\nmax_train_rows = 8\n"
    graph = graph_of(tmp_path, study_text("enc", keys))
    student = the_run(graph, "single->multi")
    few, all_rows = (the_run(graph, "single", task=name) for name in ("tickets", "urgency"))
    assert graph.needs_weights(few, student)
    assert not graph.needs_weights(all_rows, student)


def test_a_student_of_swapped_pairs_needs_the_weights_of_a_teacher_without(tmp_path: Path) -> None:
    keys = 'tasks = ["duplicate.toml", "tickets.toml"]'
    keys += "\n\n[stage.single.task.duplicate]\nsymmetric = false\n"
    graph = graph_of(tmp_path, study_text("enc", keys))
    student = the_run(graph, "single->multi")
    assert graph.needs_weights(the_run(graph, "single", task="duplicate"), student)
    assert not graph.needs_weights(the_run(graph, "single"), student)


FROM_TEACHERS = """

[[arm]]
name = "mean"
chain = "single->multi"
set = { init = "teachers" }
"""


def test_a_student_that_starts_from_its_teachers_is_another_run_and_needs_their_weights(
    tmp_path: Path,
) -> None:
    graph = graph_of(tmp_path, study_text("enc", FROM_TEACHERS))
    mean, plain = the_run(graph, "mean"), the_run(graph, "single->multi")
    assert mean.id != plain.id
    assert mean.teachers == plain.teachers
    for teacher in teachers_of(graph, mean):
        assert graph.needs_weights(teacher, mean)
        assert not graph.needs_weights(teacher, plain)


@pytest.mark.parametrize(
    ("keys", "rest"),
    [
        (
            FROM_TEACHERS.replace("single->multi", "multi"),
            "'mean': init = \"teachers\" in its stage multi, which has no teachers",
        ),
        (
            FROM_TEACHERS + 'teachers = "out-of-fold:2"\n',
            "'mean': init = \"teachers\" in its stage multi, whose teachers are out of fold, "
            "expected whole ones",
        ),
        (
            FROM_TEACHERS.replace('"teachers"', '"teachers", pooling = "cls"'),
            "'mean': init = \"teachers\" in its stage multi, whose teachers have pooling auto, "
            "expected cls",
        ),
        (
            FROM_TEACHERS.replace('"teachers"', '"teachers", encoder = "other"'),
            "'mean': init = \"teachers\" in its stage multi, whose teachers have encoder enc, "
            "expected other",
        ),
    ],
)
def test_a_student_that_cannot_start_from_its_teachers_is_refused(
    tmp_path: Path, keys: str, rest: str
) -> None:
    with pytest.raises(UserError) as caught:
        graph_of(tmp_path, study_text("enc", keys))
    assert caught.value.message == f"cannot plan the arm {rest}"
    assert caught.value.hint


def test_needed_runs_of_a_seed_are_its_arms_and_their_teachers(tmp_path: Path) -> None:
    text = study_text("enc", 'teachers = "first"', arms='["single->multi"]')
    graph = graph_of(tmp_path, text)
    assert [node.cfg.seed for node in graph.needed([2])] == [1, 1, 2]


def test_folders_tell_what_a_run_is_and_are_distinct(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, study_text("enc", arms='["single->multi", "multi+finetune"]'))
    folders = {node.folder for node in graph.nodes.values()}
    assert len(folders) == len(graph.nodes)
    student = the_run(graph, "single->multi")
    assert student.folder == f"runs/single-multi-all-seed1-{student.id[:8]}"
    tuned = the_run(graph, "multi+finetune")
    assert tuned.folder == f"runs/multi-finetune-tickets-seed1-{tuned.id[:8]}"


def test_effective_settings_name_the_tasks_that_are_swapped(tmp_path: Path) -> None:
    write_study(tmp_path, study_text("enc"))
    task = Task.load(tmp_path / "duplicate.toml")
    assert effective_settings(TrainConfig(), [task], taught=False)["symmetric"] == ["duplicate"]


def test_a_graph_of_thousands_of_runs_is_built_in_seconds(tmp_path: Path) -> None:
    arms = '["single", "multi", "single->multi", "single->multi->single->multi", "multi->single"]'
    path = write_study(tmp_path, study_text("enc", "seeds = 200", arms=arms))
    begin = time.monotonic()
    graph = build_graph(read_spec(path))
    assert len(graph.nodes) == 200 * (2 + 1 + 1 + 2 + 1 + 2)
    assert time.monotonic() - begin < 10


def test_reading_a_study_with_given_tasks_needs_no_files(tmp_path: Path) -> None:
    path = write_study(tmp_path, study_text("enc"))
    task = Task.load(tmp_path / "tickets.toml")
    named = {"tickets.toml": task, "urgency.toml": task.model_copy(update={"name": "urgency"})}
    spec = parse_study(path.read_text(), path, named.__getitem__, {})
    assert list(spec.tasks) == ["tickets", "urgency"]


# Seeds times runs of a seed: one per task for a stage `single` or `finetune`, one for `multi`.
RUNS = {
    "small-builtin": 2 * (4 + 1),  # those that choose; the others are not known yet
    "first-light-b": 3 * (8 + 1),
    "paper-ablations": 20 * (8 + 5),
    "paper-dev": 20 * (8 + 1 + 8 + 1 + 1),
    "paper-finetune": 20 * (1 + 8 + 8 + 1 + 8),
    "paper-rte": 20 * 4,
    "small-ablations": 20 * (8 + 5),
    "small-attention-dropout": 5 * 2 * (4 + 1 + 1),
    "small-dev": 20 * (8 + 1 + 8 + 1 + 1),
    "small-finetune": 20 * (1 + 8 + 8 + 1 + 8),
    "small-four": 10 * (4 + 1 + 1),
    "small-passes": 20 * 2 * (4 + 1 + 1),
    "small-rte": 20 * 4,
    "small-soups": 20 * (1 + 4 + 1),
    "small-start": 20 * (4 + 2),
    "small-targets": 20 * (4 + 6),
    # three teachers or five folds of each task; the first seed's student is in two arms
    "small-teachers": 20 * (3 * 4 + 5 * 4 + 4) - 1,
    "small-balance": 10 * (4 + 2 * 4),
}


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_study_that_comes_with_outshine_has_the_runs_that_it_should(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OUTSHINE_GLUE_DIR", raising=False)
    spec = read_spec(path)
    graph = build_graph(spec, data={name: {"splits": {}} for name in spec.tasks})
    assert spec.name == path.stem
    assert len(graph.nodes) == RUNS[path.stem]
    assert graph.pending == (spec.select is not None)
    said = re.search(r"^# ([\d,]+) runs ", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert said is None or int(said[1].replace(",", "")) == len(graph.nodes)
