"""Every option of a run: its name, unit, default, allowed values and meaning.

One YAML file holds one run; its sections are the fields of :class:`Config`. Nothing else is configurable: no
environment variable, no file that includes another. Checks that need more than one field stand in
:mod:`nt_pretrain.config.checks`.
"""

from __future__ import annotations

import fractions
import math
from typing import Annotated, Literal

from pydantic import Field

from nt_pretrain.config.compare_section import CompareSection
from nt_pretrain.config.method_section import MethodSection
from nt_pretrain.config.model_section import ModelSection
from nt_pretrain.config.section import Density, Fraction, Inside, NonNegative, Positive, Section

Weight = Annotated[float, Field(ge=0)]
LaterStep = Annotated[int, Field(ge=2)]
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class RunSection(Section):
    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$", description="Name of the run; its folder is DIR/NAME.")
    dir: str = Field("runs", description="Folder that holds the run folders.")
    seed: NonNegative = Field(0, description="Seed of initial weights, topologies, data order and drops.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device of the ranks; auto: CUDA where present.")
    threads_per_rank: NonNegative = Field(
        0, description="CPU threads of a rank; 0: cores divided by local ranks (1 with parallel.deterministic_reduce)."
    )


class SparsitySection(Section):
    density: Density = Field(1.0, description="Share of active units over all sparse layers. 1: dense, no topology.")
    distribution: Literal["erk", "uniform"] = Field("erk", description="How the budget is spread over layers.")
    scope: Literal["all", "heads", "no_vocab", "head_blocks"] = Field(
        "all",
        description="Sparse layers: every matrix; those of the heads; all but embedding and output layers; those of "
        "the heads but their embedding and output layers.",
    )
    group_density: dict[
        Literal["embedding", "attention", "ffn", "stem", "conv1x1", "conv3x3", "downsample", "linear", "output"],
        Density,
    ] = Field(default_factory=dict, description="Density fixed per group; the rest shares what remains of the budget.")
    unit: Literal[1, 16, 32, 64, 128] = Field(
        1,
        description="What is dropped and grown: 1 weight, or a b x b block; of a convolution b outputs x b channels at "
        "one place of its kernel. Convolutions whose channels it does not divide, and classifiers of pictures, stay "
        "dense.",
    )
    backend: Literal["masked", "block"] = Field(
        "masked",
        description="masked: dense matrices with zeros, the reference. block: only active blocks exist, in memory, in "
        "products and in what ranks send one another.",
    )
    balance: Literal["layer", "line"] = Field(
        "layer",
        description="layer: the best units of a whole layer are active. line: as many blocks in every block row (of "
        "layers that end a residual branch: in every block column), as backend: block needs.",
    )
    drop: Literal["magnitude", "soft_magnitude"] = Field("magnitude", description="How units to drop are chosen.")
    temperature: Annotated[float, Field(gt=0)] = Field(
        3.0, description="Exponent T of soft_magnitude: units stay with weights |w|**T (successive sampling)."
    )
    grow: Literal["gradient", "momentum", "random"] = Field("gradient", description="How units to grow are chosen.")
    grow_random_share: Fraction = Field(0.0, description="Share of the grown units that is chosen at random instead.")
    prune_rate: Fraction = Field(0.5, description="Share of a layer's active units dropped at the first update.")
    prune_rate_end: Fraction = Field(0.005, description="The same at the last step of the schedule.")
    prune_rate_schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Shape in between.")
    update_every: Positive = Field(50, description="Steps between topology updates (Delta T).")
    stop_fraction: Fraction = Field(1.0, description="No topology update after this share of the training steps.")
    density_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="How density goes from density_start to density over the steps."
    )
    density_start: Density = Field(0.999, description="Density at step 0 unless density_schedule is constant.")
    grown_moments: Literal["mean", "zero", "warm"] = Field(
        "mean",
        description="Adam's second moment of a grown unit: mean of the layer's active ones; zero; or warm: moments "
        "that integrated the dense gradient all along (what the authors' code does). SGD has no second moment: its "
        "momentum of a grown unit starts at zero (mean, zero) or warm.",
    )
    just_dropped: Literal["keep", "zero", "exclude"] = Field(
        "keep",
        description="A unit that is dropped and wins its place back in the same update: keeps its value (the authors' "
        "code), restarts at zero, or may not be grown.",
    )


class StrippingSection(Section):
    """Synaptic stripping (arXiv 2302.05818), beside whatever else the run does: hidden units behind a ReLU that are
    never active lose their most negative incoming weights, for good.
    """

    every_steps: NonNegative = Field(0, description="Steps between removals; 0: no stripping.")
    window_steps: NonNegative = Field(
        0, description="Training steps before each removal whose activity counts; 0: all since the one before."
    )
    quantile: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05,
        description="Of a dead unit's active incoming weights those below this quantile, signs included, are removed. "
        "0: none, dead units are only counted.",
    )
    threshold: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="A unit is dead that is active for no larger share of the tokens or pixels. 0: for none."
    )


class OptimSection(Section):
    """AdamW or SGD. Norms and biases are never decayed."""

    algorithm: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with momentum.")
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description="Peak learning rate.")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.95), description="adamw: decay of the first and second moment.")
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="adamw: epsilon of Adam.")
    momentum: Inside = Field(0.9, description="sgd: decay of the momentum.")
    nesterov: bool = Field(True, description="sgd: step along the gradient where the momentum leads (Nesterov).")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="Decay of matrices and kernels (not of norms and biases): adamw: decoupled from the gradient; sgd: "
        "added to it, after clipping (L2).",
    )
    factor_lr: Annotated[float, Field(gt=0)] = Field(
        0.5, description="model.sharing: rank_one: learning rate of the factors, as a share of lr. They never decay."
    )
    clip: Annotated[float, Field(ge=0)] = Field(1.0, description="Largest norm of the active gradient; 0: no clipping.")
    warmup_steps: NonNegative = Field(0, description="Linear warm-up from 0.")
    schedule: Literal["cosine", "linear", "wsd", "step"] = Field("cosine", description="Shape after warm-up.")
    warmup_from: Fraction = Field(0.0, description="Where the warm-up starts, as a share of lr.")
    min_lr_ratio: Fraction = Field(0.1, description="Learning rate at the end, as a share of lr (not for step).")
    decay_fraction: Fraction = Field(0.2, description="wsd only: share of the steps spent in the final decay.")
    milestones: tuple[Inside, ...] = Field(
        (0.3333, 0.6667, 0.8889),
        description="step only: shares of the training steps after which the learning rate falls, ascending; by "
        "default after 30, 60 and 80 of 90 epochs.",
    )
    decay_factor: Inside = Field(0.1, description="step only: what the learning rate is multiplied by at each.")


class TrainSection(Section):
    steps: Positive = Field(1000, description="Optimizer steps.")
    steps_over_density: bool = Field(
        False, description="Parity: train int(steps / density) steps, warm-up too, as the paper's sparse runs do."
    )
    global_batch: Positive = Field(32, description="Sequences, pictures or rows per optimizer step over all ranks.")
    micro_batch: Positive = Field(4, description="Sequences, pictures or rows per rank and forward pass.")
    precision: Literal["fp32", "bf16", "pure_bf16", "fp64"] = Field(
        "fp32",
        description="fp32; fp64 (to compare meshes, not to train); bf16: compute in bf16 with fp32 master weights, "
        "moments and reduction; pure_bf16: weights and moments in bf16 too (parity with the authors; Adam's second "
        "moment then hardly decays).",
    )
    head_loss: Literal["sum", "mean"] = Field("mean", description="Training loss: sum or mean of the heads' losses.")
    loss_chunk: Positive = Field(1024, description="Text: tokens whose logits exist at once in the loss.")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Pictures, rows: share of the target's weight spread over all classes in the training loss."
    )
    batch_repeats: Positive = Field(
        1, description="model.sharing: inputs: how often every member sees each picture of a batch (the authors': 4)."
    )
    same_inputs: Fraction = Field(
        0.0, description="model.sharing: inputs: share of the rows in which all members see the same picture."
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Keep an exponential moving average of the weights, from the initial ones on, over about "
        "1 / (1 - ema_decay) steps; it is validated beside the weights. 0: none.",
    )


class ParallelSection(Section):
    """Axes of the mesh of ranks, replicate x shard x head x tensor (docs/DISTRIBUTED.md), and how memory is saved."""

    replicate: Positive = Field(1, description="Copies of all shards (hybrid sharding): one per node, for example.")
    shard: NonNegative = Field(0, description="Ranks over which weights are sharded; 0: those the other axes leave.")
    head: Positive = Field(1, description="Groups of ranks that share out the heads; must divide model.heads.")
    tensor: Positive = Field(1, description="Ranks that share every matrix product (tensor and sequence parallel).")
    activation_checkpoint: Literal["none", "selective", "full"] = Field(
        "none",
        description="Activations computed again in the backward pass: none; those of feed-forward layers (selective); "
        "of whole blocks (full).",
    )
    compile: bool = Field(False, description="Compile every block with torch.compile.")
    prefetch: NonNegative = Field(
        0, description="Blocks whose weights are gathered ahead of time, forward and backward; 0: torch decides."
    )
    cpu_offload: bool = Field(False, description="Keep shards of weights, moments and gradients in host memory.")
    batch_norm: Literal["rank", "all"] = Field(
        "rank",
        description="Pictures: a batch norm normalises with the micro-batch of its rank, or with those of all ranks "
        "together (synchronised).",
    )
    reshard_after_forward: bool = Field(True, description="Free gathered block weights after the forward pass.")
    deterministic_reduce: bool = Field(
        False,
        description="Bit-identical runs at every world size (gradients are reduced in fp64).",
    )
    timeout_seconds: Positive = Field(120, description="A collective that takes longer ends the run.")
    first_timeout_seconds: Positive = Field(600, description="The same until the first step is done.")


class DataSection(Section):
    path: str = Field(
        "data/text",
        description="Folder or URL (https://, s3://, gs://) of a prepared corpus: train/ and validation/ with shards "
        "and manifests.",
    )
    sources: dict[SourceName, str] = Field(
        default_factory=dict, description="Several corpora to mix, name to folder or URL; replaces path."
    )
    weights: dict[SourceName, Weight] = Field(
        default_factory=dict,
        description="Relative number of sequences of each source, kept exactly over every 1,000; default: equal.",
    )
    curriculum: dict[LaterStep, dict[SourceName, Weight]] = Field(
        default_factory=dict, description="Weights from given steps on: step to weights of the sources (others: 0)."
    )
    tokenizer: str = Field("tokenizers/text.model", description="SentencePiece model.")
    sequence_length: Positive = Field(256, description="Tokens of a training sequence.")
    packing: Literal["pack", "truncate"] = Field(
        "pack",
        description="Pack documents into full sequences; or one document per sequence, cut and padded (the paper).",
    )
    picture_size: Positive = Field(224, description="Pictures: pixels of each side, in training and validation.")
    picture_shorter: Positive = Field(
        256, description="Pictures: shorter side before the centre of picture_size is cut out, in validation."
    )
    picture_area: tuple[Fraction, Fraction] = Field(
        (0.08, 1.0), description="Pictures: least and largest share of a picture that a training crop covers."
    )
    picture_jitter: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Pictures: strength of random brightness, contrast and saturation; 0: none."
    )
    lanes: NonNegative = Field(
        0, description="Parallel streams the order is cut into; 0: greatest common divisor of global_batch and 64."
    )
    window: Positive = Field(4096, description="Documents permuted together inside a lane.")
    workers: NonNegative = Field(1, description="Reader processes per rank; 0 reads in the training process.")
    prefetch_batches: Positive = Field(4, description="Batches a reader process keeps ready.")
    max_bad_fraction: Fraction = Field(
        0.001,
        description="Share of a source's documents that may be lost in an epoch: they are masked, counted and named; "
        "more stop the run (exit code 3). 0: none.",
    )
    allow_change: bool = Field(
        False, description="Go on from a checkpoint although the data or its order changed; recorded as an event."
    )
    stall_seconds: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="A reader process that shows no sign of life for so long is replaced; 0: so that all replacements "
        "fit into parallel.timeout_seconds.",
    )
    reader_restarts: NonNegative = Field(
        3, description="Times that dead or stalled readers are replaced for one batch before the run stops."
    )
    cache_dir: str = Field("~/.cache/nt_pretrain", description="Folder for copies of remote shards, one per machine.")
    cache_gb: Annotated[float, Field(gt=0)] = Field(100.0, description="Gigabytes those copies may take.")
    retries: NonNegative = Field(5, description="Further attempts at a remote read that failed.")
    read_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        20.0, description="A remote request that gives nothing for so long has failed."
    )
    slowest_kb_per_second: Annotated[float, Field(gt=0)] = Field(
        100.0, description="A remote request that is slower has failed, and is tried again."
    )


class CheckpointSection(Section):
    save_every_steps: NonNegative = Field(
        500, description="Steps between checkpoints; 0: only at the end and on signals."
    )
    save_every_minutes: Annotated[float, Field(ge=0)] = Field(30.0, description="Minutes between checkpoints; 0: off.")
    keep: Positive = Field(2, description="Newest checkpoints kept.")
    asynchronous: bool = Field(
        True, description="Write checkpoints while training goes on, from a copy in host memory; false: training waits."
    )


class EvalSection(Section):
    every_steps: NonNegative = Field(500, description="Steps between validations; 0: only at the end.")
    sequences: NonNegative = Field(
        512, description="Validation sequences, pictures or rows; always the same ones. 0: all there are."
    )
    micro_batch: Positive = Field(8, description="Sequences, pictures or rows per rank and validation forward pass.")
    calibration_sequences: NonNegative = Field(
        0,
        description="Text: validation sequences, the first ones, of which calibration and diversity are measured too, "
        "which takes some ms for each token on a CPU; 0: none. Of pictures and rows they always are.",
    )
    figures: bool = Field(
        True, description="Draw reliability and disagreement where they are measured (needs matplotlib)."
    )
    ensemble: Literal["probability", "logit"] = Field(
        "probability", description="Prediction of the ensemble that is headlined: mean of probabilities or of logits."
    )
    unigram_tokens: NonNegative = Field(1_000_000, description="Training tokens counted for the unigram level; 0: off.")
    authors_divisor: bool = Field(
        False, description="Parity: also report perplexity with the authors' (batches + 1) divisor."
    )


class ObserveSection(Section):
    log_every_steps: Positive = Field(10, description="Steps between console and metrics.jsonl lines.")
    tensorboard: bool = Field(True, description="Write TensorBoard event files.")
    peak_tflops: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Peak of one device in TFLOP/s for MFU; 0: known devices only, MFU is left out elsewhere."
    )


class Config(Section):
    """A whole run."""

    run: RunSection = Field(default_factory=RunSection)
    model: ModelSection = Field(default_factory=ModelSection)
    sparsity: SparsitySection = Field(default_factory=SparsitySection)
    stripping: StrippingSection = Field(default_factory=StrippingSection)
    method: MethodSection = Field(default_factory=MethodSection)
    data: DataSection = Field(default_factory=DataSection)
    optim: OptimSection = Field(default_factory=OptimSection)
    train: TrainSection = Field(default_factory=TrainSection)
    parallel: ParallelSection = Field(default_factory=ParallelSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    eval: EvalSection = Field(default_factory=EvalSection)
    observe: ObserveSection = Field(default_factory=ObserveSection)
    compare: CompareSection = Field(default_factory=CompareSection)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run after ``train.steps_over_density``."""
        return self._over_density(self.train.steps)

    @property
    def lanes(self) -> int:
        """Parallel streams of the data order: ``data.lanes``, or what its default stands for."""
        return self.data.lanes or math.gcd(self.train.global_batch, 64)

    @property
    def stall_seconds(self) -> float:
        """``data.stall_seconds``, or what its default stands for."""
        fitting = self.parallel.timeout_seconds / (self.data.reader_restarts + 2)
        return self.data.stall_seconds or max(10.0, fitting)

    @property
    def warmup_steps(self) -> int:
        """Warm-up steps after ``train.steps_over_density``."""
        return self._over_density(self.optim.warmup_steps)

    def _over_density(self, steps: int) -> int:
        # In decimals, as people write the density: in binary 7 / 0.07 is less than 100.
        return int(steps / fractions.Fraction(str(self.sparsity.density))) if self.train.steps_over_density else steps
