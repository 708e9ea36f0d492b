"""Studies on a real Ray cluster of two nodes on this machine, one of which is killed."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outshine import ray_executor
from outshine.errors import UserError, WorldError
from outshine.graph import Node
from outshine.launch import run_study
from outshine.results import read_rows
from outshine.runs import Run
from outshine.study import open_study
from outshine.workers import request
from studies import alike, slow_text, start, wait_for, write_study

NEEDED = "needs the extra ray: pip install 'outshine[ray]'"


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    return write_study(tmp_path_factory.mktemp("slow"), slow_text(encoder))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head with one core; RAY_ADDRESS names it."""
    pytest.importorskip("ray", reason=NEEDED)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    # Ray makes its workers nice, so that beside other work they would not get to train
    monkeypatch.setenv("RAY_worker_niceness", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    made.shutdown()


def held_by(study: Path, raylet: int) -> list[int]:
    """Bytes of a study's claims that are locked by the workers of one Ray node."""
    inode = (study / ".claims").stat().st_ino if (study / ".claims").exists() else -1
    places = []
    for line in Path("/proc/locks").read_text().splitlines():
        _, kind, _, _, pid, file, first, _ = line.split()[-8:]
        if kind != "POSIX" or int(file.split(":")[2]) != inode:
            continue
        status = Path(f"/proc/{pid}/status")
        if status.exists() and f"\nPPid:\t{raylet}\n" in status.read_text():
            places.append(int(first))
    return places


def test_when_a_node_is_killed_its_run_goes_on_elsewhere_from_its_checkpoint(
    cluster: Any, slow: Path, tmp_path: Path
) -> None:
    local = run_study(slow, out=tmp_path / "local")
    out = tmp_path / "out"
    node = cluster.add_node(num_cpus=1)
    (raylet,) = [p.process.pid for p in node.all_processes["raylet"]]
    process = start(
        "study", "run", str(slow), "--out", str(out), "--executor", "ray", "--jobs", "2"
    )
    by_place = {int(run, 16) >> 1: made for run, made in local.graph.nodes.items()}
    caught: list[Node] = []

    def in_the_middle() -> bool:
        for place in held_by(out, raylet):
            run = Run(out / by_place[place].folder)
            if run.checkpoint_path.exists() and len(run.log_path.read_text().splitlines()) < 20:
                caught.append(by_place[place])
        return bool(caught)

    wait_for(in_the_middle, "a run in the middle on the second node")
    cluster.remove_node(node, allow_graceful=False)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert Run(out / caught[0].folder).info()["resumed"] >= 1
    assert alike(read_rows([out])) == alike(local.rows())
    assert f"[{len(local.graph.nodes)}/{len(local.graph.nodes)}]" in said


def test_ctrl_c_reaches_workers_on_ray(cluster: Any, slow: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start("study", "run", str(slow), "--out", str(out), "--executor", "ray")
    wait_for(lambda: bool(list(out.glob("runs/*/checkpoint/state.safetensors"))), "a checkpoint")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert list(out.glob("runs/*/checkpoint/state.safetensors"))


def test_an_error_of_a_worker_on_ray_is_the_studys(
    cluster: Any, slow: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_study(slow, out=out, seeds=[])
    (out / "runs").write_text("in the way")
    with pytest.raises((UserError, WorldError), match=r"cannot write"):
        run_study(slow, out=out, executor="ray")


def test_a_node_that_does_not_see_the_folder_says_so(slow: Path, tmp_path: Path) -> None:
    given = request(open_study(slow, out=tmp_path / "elsewhere"), [1], None)
    error = ray_executor.serve_on_node(given, None)
    assert error is not None and error["code"] == 1
    assert error["message"].startswith("cannot work on the study on ")
    assert error["message"].endswith(f": no folder {tmp_path / 'elsewhere'}")


@pytest.mark.parametrize("listening", [False, True])
def test_an_address_that_does_not_answer_is_told_in_time(
    slow: Path, monkeypatch: pytest.MonkeyPatch, listening: bool
) -> None:
    pytest.importorskip("ray", reason=NEEDED)
    monkeypatch.setattr(ray_executor, "ANSWER_S", 5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listening:
            silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(WorldError) as caught:
            run_study(slow, executor="ray")
    assert caught.value.message == (
        f"cannot run the study on Ray at '{address}': no answer within 5 s"
    )
    assert caught.value.hint == (
        "`ray start --head` starts a cluster; RAY_ADDRESS names one, such as 10.0.0.1:6379"
    )
    assert not (slow.parent / "tiny").exists()


def test_an_address_that_is_none_is_told_with_rays_reason(
    slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason=NEEDED)
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(WorldError, match=r"cannot run the study on Ray at 'nonsense': ValueError"):
        run_study(slow, executor="ray")


def test_without_the_extra_the_way_to_it_is_told(
    slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        run_study(slow, executor="ray")
    assert caught.value.message == "cannot run the study on Ray: the package ray is missing"
    assert caught.value.hint == "pip install 'outshine[ray]'"


@pytest.mark.parametrize(
    ("nodes", "jobs", "share"),
    [
        ([{"CPU": 1.0}, {"CPU": 1.0}], 2, {"num_cpus": 1, "num_gpus": 0}),
        ([{"CPU": 8.0}, {"CPU": 4.0}], 2, {"num_cpus": 4, "num_gpus": 0}),
        ([{"CPU": 8.0}], 16, {"num_cpus": 1, "num_gpus": 0}),
        ([{}, {"CPU": 8.0, "GPU": 2.0}], 3, {"num_cpus": 2, "num_gpus": 0.5}),
        ([{"CPU": 8.0, "GPU": 1.0}], 7, {"num_cpus": 1, "num_gpus": 0.1428}),
        ([{"CPU": 8.0, "GPU": 4.0}], 2, {"num_cpus": 4, "num_gpus": 1.0}),
    ],
)
def test_a_worker_gets_its_share_of_the_cluster(
    nodes: list[dict[str, float]], jobs: int, share: dict[str, float]
) -> None:
    gone = {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 9.0}}
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    assert ray_executor._share([gone, *alive], jobs) == share


def test_the_end_of_a_worker_is_noticed_while_others_tell_without_pause(
    slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    class Full:
        def __init__(self, **_: Any) -> None: ...

        def get(self, timeout: float = 0.0) -> dict[str, Any]:
            return {"event": "progress"}

        def empty(self) -> bool:
            return True

    def tell(event: dict[str, Any]) -> None:
        told.append(event)
        assert len(told) < 1000

    task = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: "worker"))
    stub = {
        "ray": SimpleNamespace(
            init=lambda **_: None,
            get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "here"),
            remote=lambda function: task,
            nodes=list,
            wait=lambda workers, **_: (workers, []),
            get=lambda worker: None,
            shutdown=lambda: None,
        ),
        "ray.exceptions": SimpleNamespace(RayError=RuntimeError),
        "ray.util": SimpleNamespace(),
        "ray.util.queue": SimpleNamespace(Empty=IndexError, Queue=Full),
        "ray.util.scheduling_strategies": SimpleNamespace(
            NodeAffinitySchedulingStrategy=lambda *_, **__: None
        ),
    }
    for name, module in stub.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(ray_executor, "_share", lambda nodes, jobs: {})
    monkeypatch.setattr(ray_executor, "LOOK_EVERY_S", 0.0)
    ray_executor.run_on_ray(open_study(slow, out=tmp_path / "out"), [1], 1, None, tell)
    assert len(told) == 1


def test_ray_is_imported_only_where_it_is_used() -> None:
    process = os.spawnv(
        os.P_WAIT,
        sys.executable,
        [sys.executable, "-c", "import sys, outshine.launch; sys.exit('ray' in sys.modules)"],
    )
    assert process == 0
