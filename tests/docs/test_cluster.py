"""docs/CLUSTER.md: torchrun takes the command it shows, and what it says of the scripts is so."""

from __future__ import annotations

import re
import shlex

from torch.distributed.run import get_args_parser

from launch.pretrain import parse
from tests.contract import ROOT

TEXT = (ROOT / "docs" / "CLUSTER.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.+?)```", TEXT, flags=re.DOTALL)


def test_torchrun_takes_the_command() -> None:
    (block,) = [block for block in BLOCKS if "torchrun" in block]
    variable, command = block.split("\n", 1)
    assert variable == "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
    options = get_args_parser().parse_args(shlex.split(command.replace("\\\n", " "))[1:])
    assert options.nnodes == "4" and options.rdzv_conf == "is_host=false"
    assert (ROOT / parse(options.training_script_args).config).is_file()


def test_every_flag_of_the_command_has_its_reason() -> None:
    reasons = TEXT.split("| setting | why |")[1].split("\n\n")[0]
    (block,) = [block for block in BLOCKS if "torchrun" in block]
    for flag in re.findall(r"--[a-z-]+", block):
        assert flag in reasons or flag in ("--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint"), flag


def test_the_scripts_use_these_settings() -> None:
    for name in ("slurm.sbatch", "kubernetes.yaml"):
        script = (ROOT / "launch" / name).read_text(encoding="utf-8")
        for setting in (
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
            "is_host=",
            "--local-addr",
            "--max-restarts",
            "--rdzv-id",
        ):
            assert setting in script, f"{name}: {setting}"
    assert "--signal=B:USR1@120" in TEXT and "#SBATCH --signal=B:USR1@120" in (
        ROOT / "launch" / "slurm.sbatch"
    ).read_text(encoding="utf-8")
