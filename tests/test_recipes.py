"""The README's recipes for workers of a cluster manager: what can be checked of them without the cluster."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from test_readme import README, blocks

URL = "rediss://user:password@redis.example.net:6380"


def _recipes(language: str) -> list[str]:
    shown = README.read_text("utf-8")
    start = shown.index("### Workers of a cluster manager")
    return [source for _, source in blocks(language, shown[start : shown.index("\n## ", start)])]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Any]:
    """The command line of `nbqueue`, where the environment says which server."""
    from nbqueue.cli import _parser

    monkeypatch.setenv("NBQUEUE_URL", URL)
    return _parser().parse_args


def test_the_recipe_for_slurm_is_a_script_with_a_command_that_exists(parse: Callable[[list[str]], Any]) -> None:
    (script,) = (source for source in _recipes("bash") if "srun" in source)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    (command,) = re.findall(r"^srun .*?\bnbqueue (.*)$", script, re.MULTILINE)
    given = parse(shlex.split(command))
    assert (given.command, given.url, given.queue) == ("worker", URL, "sweep")
    assert not re.search(r"rediss?://", script), "other users of the machine see it"


def test_the_recipe_for_kubernetes_is_a_deployment_with_a_command_that_exists(
    parse: Callable[[list[str]], Any],
) -> None:
    (manifest,) = map(yaml.safe_load, _recipes("yaml"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("apps/v1", "Deployment")
    spec = manifest["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    (container,) = spec["template"]["spec"]["containers"]
    program, *arguments = container["command"]
    given = parse(arguments)
    assert (program, given.command, given.url, given.queue) == ("nbqueue", "worker", URL, "sweep")
    # What one worker may use, times as many as there are cores, is what the pod may.
    limits = container["resources"]["limits"]
    assert given.memory_limit == "1500MB"
    assert (limits["cpu"], limits["memory"]) == ("2", "4Gi")
    (name,) = (each["secretRef"]["name"] for each in container["envFrom"])
    (commands,) = (source for source in _recipes("bash") if "kubectl" in source)
    assert f"kubectl create secret generic {name} --from-env-file=nbqueue.env" in commands
    assert f"kubectl scale deployment {manifest['metadata']['name']} " in commands


def test_the_environment_that_all_recipes_use_has_the_names_that_are_read() -> None:
    (environ,) = (source for source in _recipes("text") if "NBQUEUE_URL" in source)
    assert [line.partition("=")[0] for line in environ.splitlines()] == ["NBQUEUE_URL", "NBQUEUE_SECRET"]


LOOK = """
import time
values = queue.map(abs, range(-40, 0)).results(timeout=60)
deadline = time.monotonic() + 30
while len(queue.status().workers) < 2 and time.monotonic() < deadline:
    time.sleep(0.05)
print(values == list(range(40, 0, -1)), len(queue.status().workers))
client.cluster.close()
client.close()
"""


@pytest.mark.soak
def test_the_recipe_for_dask_has_its_workers_run_ours(
    redis_server: Any, tmp_path: Any, wait_until: Callable[..., Any]
) -> None:
    pytest.importorskip("distributed", reason="dask is not installed: pip install distributed")
    (recipe,) = _recipes("py")
    ran = subprocess.run(
        [sys.executable, "-c", recipe + LOOK],
        env={**os.environ, "NBQUEUE_URL": redis_server.url, "NBQUEUE_SECRET": "5a" * 32},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "True 2" in ran.stdout.splitlines(), ran.stdout + ran.stderr
    with redis_server.client() as client:
        # They end with Dask's.
        wait_until(lambda: not [key for key in client.scan_iter("nbq:*:hb") if client.hlen(key)], timeout=30)
