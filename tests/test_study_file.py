"""Study files: what they mean, and what is said of those that mean nothing."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from outshine.chains import Policy, parse_chain, parse_policy
from outshine.errors import UserError
from outshine.study_source import differences
from studies import read_spec, study_text, write_study


def problems_of(folder: Path, text: str) -> str:
    """The message about a study file, without its path."""
    path = write_study(folder, text)
    with pytest.raises(UserError) as caught:
        read_spec(path)
    assert caught.value.hint
    return caught.value.message.replace(f"cannot read the study file {path}: ", "")


@pytest.mark.parametrize(
    ("chain", "links"),
    [
        ("single", ["single"]),
        ("single->multi", ["single", "multi"]),
        (" single -> multi ", ["single", "multi"]),
        ("single->multi->single->multi", ["single", "multi", "single", "multi"]),
        ("multi+finetune", ["multi", "finetune"]),
        ("single->multi + finetune", ["single", "multi", "finetune"]),
    ],
)
def test_a_chain_is_its_stages(chain: str, links: list[str]) -> None:
    assert parse_chain(chain) == links


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (
            "single->mutli",
            "unknown stage 'mutli' (did you mean 'multi'?), expected single or multi\n"
            "    single->mutli\n"
            "            ^",
        ),
        (
            "single->->multi",
            "a stage is missing, expected single or multi\n    single->->multi\n            ^",
        ),
        (
            "",
            "a stage is missing, expected single or multi\n    \n    ^",
        ),
        (
            "multi->finetune",
            "finetune teaches nobody, expected `+finetune` at the end of the chain\n"
            "    multi->finetune\n"
            "           ^",
        ),
        (
            "multi+finetun",
            "'finetun' after `+` (did you mean 'finetune'?), expected finetune at the end of the "
            "chain\n"
            "    multi+finetun\n"
            "          ^",
        ),
        (
            "multi+finetune->multi",
            "'->multi' after finetune, expected the chain's end\n"
            "    multi+finetune->multi\n"
            "                  ^",
        ),
        (
            "single+finetune",
            "finetune after single, expected after multi\n    single+finetune\n           ^",
        ),
    ],
)
def test_a_chain_that_does_not_parse_is_pointed_at(chain: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_chain(chain)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("same-seed", Policy("same-seed")),
        ("first", Policy("first")),
        ("ensemble:3", Policy("ensemble", 3)),
        ("out-of-fold:5", Policy("out-of-fold", 5)),
    ],
)
def test_a_policy_is_read_and_written(text: str, policy: Policy) -> None:
    assert parse_policy(text) == policy
    assert str(policy) == text


@pytest.mark.parametrize("text", ["ensemble", "ensemble:1", "out-of-fold:x", "sameseed", ""])
def test_an_unknown_policy_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"same-seed, first, ensemble:k, out-of-fold:k with k"):
        parse_policy(text)


def test_a_study_file_is_read_with_its_defaults(tmp_path: Path) -> None:
    spec = read_spec(write_study(tmp_path, study_text("enc")))
    assert [arm.name for arm in spec.arms] == ["single", "multi", "single->multi"]
    assert spec.seeds == (1, 2)
    assert spec.compare == (("multi", "single"), ("single->multi", "single"))
    assert spec.keep == "predictions"
    assert list(spec.tasks) == ["tickets", "urgency"]
    assert spec.arms[0].teachers == Policy("same-seed")
    assert spec.stages["single"]["encoder"] == "enc"


def test_seeds_may_be_a_list(tmp_path: Path) -> None:
    assert read_spec(write_study(tmp_path, study_text("enc", "seeds = [7, 3]"))).seeds == (7, 3)


def test_a_named_variation_sets_only_its_last_stage(tmp_path: Path) -> None:
    keys = """

[[arm]]
name = "half"
chain = "single->multi"
set = { anneal = "constant" }
tasks = ["urgency.toml"]
teachers = "first"
"""
    arm = read_spec(write_study(tmp_path, study_text("enc", keys))).arm("half")
    assert [(s.kind, s.settings) for s in arm.stages] == [
        ("single", {}),
        ("multi", {"anneal": "constant"}),
    ]
    assert arm.tasks == ("urgency",)
    assert arm.teachers == Policy("first")


def test_a_chain_may_begin_with_another_arm(tmp_path: Path) -> None:
    keys = """

[[arm]]
name = "slow"
chain = "single"
set = { lr = 1e-5 }
[[arm]]
name = "taught slowly"
chain = "slow->multi"
"""
    arm = read_spec(write_study(tmp_path, study_text("enc", keys))).arm("taught slowly")
    assert [(s.kind, s.settings) for s in arm.stages] == [("single", {"lr": 1e-5}), ("multi", {})]


def test_a_cycle_of_arms_is_refused(tmp_path: Path) -> None:
    keys = """

[[arm]]
name = "a"
chain = "b->multi"
[[arm]]
name = "b"
chain = "a->single"
"""
    message = problems_of(tmp_path, study_text("enc", keys))
    assert "arm 'a': a cycle: a starts with b starts with a" in message


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    keys = """compare = [["single", "mutli"], ["multi", "multi"]]
teachers = "frist"
seeds = 0
tasks = ["tickets.toml", "nothing.toml", "tickets.toml"]

[stage.multi.task.rte]
lr = 1.0
[stage.sinlge]
lr = 1.0
[[arm]]
name = "multi"
chain = "multi"
set = { lrr = 1e-3, seed = 3 }
"""
    text = study_text("enc", keys).replace("[stage.finetune]", "[stage.single.task.tickts]")
    message = problems_of(tmp_path, text)
    for line in (
        "problems\n",
        "arms: 'multi' given twice, expected distinct names",
        f"tasks: cannot read {tmp_path / 'nothing.toml'}: no such file",
        "teachers: 'frist' (did you mean 'first'?), expected same-seed, first, ensemble:k, "
        "out-of-fold:k with k from 2",
        "arm 'multi': set.seed: given, expected none: the study decides it",
        "arm 'multi': set: unknown key 'lrr' (did you mean 'lr'?)",
        "stage.multi.task: given, expected only in stages of one task a run",
        "stage: unknown stage 'sinlge' (did you mean 'single'?), expected single, multi, finetune",
        "stage.single.task: no task 'tickts' (did you mean 'tickets'?), expected one of tickets",
        "seeds: 0, expected a number of seeds from 1, or a list",
        "compare: no arm 'mutli' (did you mean 'multi'?), expected one of single, multi, "
        "single->multi, multi",
        "compare: 'multi' with itself, expected two arms",
    ):
        assert line in message, message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds = 2", "seeds = [1, 1]"), "seeds: [1, 1], expected distinct numbers from 0"),
        (
            ("[stage.multi]", "[stage.finetune.task.tickets]"),
            "arm 'multi': no settings of its stage multi, expected [stage.multi]",
        ),
        (
            ('encoder = "enc"', ""),
            "stage.single: no encoder, expected `encoder = ...` above the tables",
        ),
        (('name = "tiny"', 'nmae = "tiny"'), "unknown key 'nmae' (did you mean 'name'?)"),
        (
            ("lr = 1e-3", 'lr = "fast"'),
            "stage.single: lr: 'fast', expected: Input should be a valid number",
        ),
        (("lr = 1e-3", "lrr = 1"), "stage.single: unknown key 'lrr' (did you mean 'lr'?)"),
        (
            ("lr = 1e-3", "task_weight = { ticket = 2.0 }"),
            "stage.single.task_weight: no task 'ticket' (did you mean 'tickets'?), expected one "
            "of tickets, urgency",
        ),
        (
            ("lr = 1e-4", 'init = "random"'),
            "stage.finetune.init: given, expected none: it goes on with a run",
        ),
        (
            ('arms = ["single", "multi", "single->multi"]', ""),
            "arms: missing, expected at least one chain, or [[arm]] tables",
        ),
        (("[stage.single]", "[stage.single"), "expected TOML"),
        (
            ("[stage.single]", "[select]\nseed = 1\nlr = [1.0, 2.0]\n[stage.single]"),
            "select.seed: 1, expected a number that is none of the seeds",
        ),
        (
            ("[stage.single]", "[select]\nseed = 9\n[stage.single]"),
            "select: no grid, expected lists such as lr = [1e-4, 3e-4]",
        ),
        (
            ("[stage.single]", "[select]\nseed = 9\nlr = 1e-4\n[stage.single]"),
            "select.lr: 0.0001, expected a list of two values or more",
        ),
        (
            ("[stage.single]", "[select]\nseed = 9\nlrr = [1, 2]\n[stage.single]"),
            "select: unknown key 'lrr' (did you mean 'lr'?)",
        ),
        (
            (
                "[stage.single]",
                "[select]\nseed = 9\nlr = [1.0, 2.0]\n"
                '[[arm]]\nname = "x"\nchain = "single"\nset = { lr = 3.0 }\n[stage.single]',
            ),
            "arm 'x': set.lr: given, and also in the grid of [select]",
        ),
        (
            (
                "[stage.single]",
                "[select]\nseed = 9\nlr = [1.0, 2.0]\n[stage.single]\ntask.tickets.lr = 3.0",
            ),
            "stage.single.task.tickets.lr: given, and also in the grid of [select]",
        ),
        (
            (
                "[stage.single]",
                "[select]\nseed = 9\nlr = [1.0, 2.0]\nset = { lr = 3.0 }\n[stage.single]",
            ),
            "select.set.lr: given, and also in the grid of [select]",
        ),
        (
            ("[stage.single]", "[select]\nseed = 9\nlr = [1.0, 2.0]\nset = 3\n[stage.single]"),
            "select.set: 3, expected a table of settings",
        ),
        (
            ("[stage.single]", '[stage.single]\ntask = "tickets"'),
            "stage.single.task: 'tickets', expected tables such as [stage.single.task.rte]",
        ),
    ],
)
def test_a_problem_of_a_file_is_named(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    assert message in problems_of(tmp_path, study_text("enc").replace(*change, 1))


@pytest.mark.parametrize(
    ("base", "chain", "message"),
    [
        (
            "multi+finetune",
            "base->multi",
            "'->multi' after finetune, expected the chain's end\n"
            "    multi+finetune->multi\n"
            "                  ^",
        ),
        (
            "single",
            "base+finetune",
            "finetune after single, expected after multi\n    single+finetune\n           ^",
        ),
    ],
)
def test_a_chain_that_begins_with_an_arm_is_refused_as_if_it_were_written_out(
    tmp_path: Path, base: str, chain: str, message: str
) -> None:
    arms = "".join(
        f'\n[[arm]]\nname = "{name}"\nchain = "{written}"\n'
        for name, written in (("base", base), ("x", chain))
    )
    assert f"arm 'x': {message}" in problems_of(tmp_path, study_text("enc", arms))


@pytest.mark.parametrize(
    ("base", "then", "message"),
    [
        (
            'chain = "single->multi"\nteachers = "ensemble:2"',
            'chain = "base->single"',
            "teachers are ensemble:2, expected its own, same-seed",
        ),
        (
            'chain = "multi"',
            'chain = "base + finetune"\ntasks = ["urgency.toml"]',
            "tasks are tickets, urgency, expected its own, urgency",
        ),
        # each of these has the runs of its base
        ('chain = "single"\nteachers = "first"', 'chain = "base->multi"', ""),
        ('chain = "single"', 'chain = "base->multi"\ntasks = ["urgency.toml"]', ""),
    ],
)
def test_a_chain_that_would_begin_with_other_runs_than_the_arm_it_names_is_refused(
    tmp_path: Path, base: str, then: str, message: str
) -> None:
    text = study_text("enc", f'\n\n[[arm]]\nname = "base"\n{base}\n[[arm]]\nname = "x"\n{then}\n')
    if message:
        assert f"arm 'x': starts with 'base', whose {message}" in problems_of(tmp_path, text)
    else:
        assert read_spec(write_study(tmp_path, text)).arm("x").stages[0].kind == "single"


def test_single_task_runs_of_other_tasks_are_others_where_settings_are_chosen(
    tmp_path: Path,
) -> None:
    arms = (
        '\n\n[[arm]]\nname = "base"\nchain = "single"\n'
        '[[arm]]\nname = "x"\nchain = "base->multi"\ntasks = ["urgency.toml"]\n'
        "[select]\nseed = 100\nlr = [1e-4, 3e-4]\n"
    )
    message = "whose tasks are tickets, urgency, expected its own, urgency"
    assert f"arm 'x': starts with 'base', {message}" in problems_of(
        tmp_path, study_text("enc", arms)
    )


def test_a_task_without_dev_is_refused(tmp_path: Path) -> None:
    path = write_study(tmp_path, study_text("enc"))
    task = tmp_path / "tickets.toml"
    task.write_text("\n".join(ln for ln in task.read_text().splitlines() if "dev" not in ln))
    with pytest.raises(UserError) as caught:
        read_spec(path)
    assert (
        "tasks: task 'tickets' has no dev split, expected one to score its runs on"
        in caught.value.message
    )


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"cannot read the study file .*s\.toml: .*expected TOML"):
        read_spec(path)


def test_differences_name_the_keys() -> None:
    before = {"seeds": 2, "stage": {"single": {"lr": 1.0}}, "arm": [{"name": "x", "chain": "a"}]}
    now = {"seeds": 3, "stage": {"single": {}}, "arm": [{"name": "x", "chain": "b"}]}
    assert differences(before, now) == [
        "seeds was 2, is 3",
        "stage.single.lr was 1.0, is not given",
        "arm.x.chain was a, is b",
    ]
    assert differences(now, now) == []


def test_overrides_win_over_stages_but_not_over_a_variation(tmp_path: Path) -> None:
    from outshine.graph import build_graph

    keys = '\n\n[[arm]]\nname = "v"\nchain = "single"\nset = { lr = 0.5 }\n'
    path = write_study(tmp_path, study_text("enc", keys, arms='["single"]'))
    graph = build_graph(read_spec(path, {"lr": 0.25}))
    assert {graph.nodes[graph.ends[arm][1][0]].cfg.lr for arm in ("single",)} == {0.25}
    assert {graph.nodes[graph.ends[arm][1][0]].cfg.lr for arm in ("v",)} == {0.5}


# --- the files in studies/ ----------------------------------------------------------------------

STUDIES = sorted((Path(__file__).parent.parent / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_chooses_its_settings_or_names_the_arms_that_are_untuned(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "paper-" in path.name or "select" in tomllib.loads(text) or "Untuned: " in text


@pytest.mark.parametrize("name", ["ablations", "dev", "finetune", "rte"])
def test_the_papers_studies_have_the_papers_dropout_of_attention(name: str) -> None:
    path = next(path for path in STUDIES if path.stem == f"paper-{name}")
    stages = tomllib.loads(path.read_text(encoding="utf-8"))["stage"]
    assert {its["attention_dropout"] for its in stages.values()} == {0.1}
