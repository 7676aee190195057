"""launch/kubernetes.yaml: its parts fit one another, and torchrun takes the command its pods run."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import config_from_args, get_args_parser

from launch.pretrain import parse

ROOT = Path(__file__).resolve().parents[2]
SERVICE, JOB = yaml.safe_load_all((ROOT / "launch" / "kubernetes.yaml").read_text(encoding="utf-8"))
POD = JOB["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
ENV: dict[str, Any] = {entry["name"]: entry.get("value") for entry in CONTAINER["env"]}
TORCHRUN = """#!/usr/bin/env python3
import json, sys
print(json.dumps(sys.argv[1:]))
"""


def arguments_of_pod(index: int, folder: Path) -> list[str]:
    """What the shell of pod ``index`` gives to torchrun; the shell is real, torchrun prints its arguments."""
    (folder / "torchrun").write_text(TORCHRUN)
    (folder / "torchrun").chmod(0o755)
    given = {"PATH": f"{folder}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": str(index)}
    values = {name: "10.1.0.7" if value is None else value for name, value in ENV.items()}
    command = CONTAINER["command"] + CONTAINER["args"]
    done = subprocess.run(command, env=given | values, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_the_service_names_the_pods() -> None:
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("v1", "Service")
    assert SERVICE["spec"]["clusterIP"] == "None", "headless, as YAML text and not null"
    assert SERVICE["spec"]["publishNotReadyAddresses"] is True
    assert POD["subdomain"] == SERVICE["metadata"]["name"]
    assert SERVICE["spec"]["selector"].items() <= JOB["spec"]["template"]["metadata"]["labels"].items()


def test_the_job_has_what_kubernetes_demands() -> None:
    assert (JOB["apiVersion"], JOB["kind"]) == ("batch/v1", "Job")
    spec = JOB["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == int(ENV["NODES"])
    assert POD["restartPolicy"] == "OnFailure" and spec["backoffLimit"] >= 100
    assert all(isinstance(entry.get("value", ""), str) for entry in CONTAINER["env"]), "Kubernetes refuses numbers"
    assert CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == int(ENV["RANKS_PER_NODE"])
    volumes = {volume["name"] for volume in POD["volumes"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == volumes
    mounts = [mount["mountPath"] for mount in CONTAINER["volumeMounts"]]
    assert {f"{CONTAINER['workingDir']}/runs", f"{CONTAINER['workingDir']}/data"} <= set(mounts)


def test_ports_names_and_seconds_agree() -> None:
    host, port = ENV["RENDEZVOUS"].rsplit(":", 1)
    assert host == f"{JOB['metadata']['name']}-0.{SERVICE['metadata']['name']}"
    assert int(port) == SERVICE["spec"]["ports"][0]["port"] == CONTAINER["ports"][0]["containerPort"]
    assert POD["terminationGracePeriodSeconds"] > int(ENV["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert ENV["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert (ROOT / ENV["CONFIG"]).is_file()


@pytest.mark.parametrize("index", [0, 3])
def test_torchrun_takes_the_command(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = get_args_parser().parse_args(arguments_of_pod(index, tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config, _, _ = config_from_args(options)
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (4, 4, 8)
    assert (config.rdzv_backend, config.rdzv_endpoint) == ("c10d", ENV["RENDEZVOUS"])
    assert config.rdzv_configs["is_host"] == ("true" if index == 0 else "false")
    assert (config.local_addr, config.max_restarts) == ("10.1.0.7", 100)
    assert options.training_script == "launch/pretrain.py"
    assert (ROOT / options.training_script).is_file()
    assert parse(options.training_script_args).config == ENV["CONFIG"]
